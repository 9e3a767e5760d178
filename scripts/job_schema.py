"""Writes docs/reference/job.schema.json, the JSON Schema of job files, from the model:

    python -m scripts.job_schema

A test compares the file with the model.
"""

from __future__ import annotations

import json
from pathlib import Path

from torg.job_schema import job_schema

FILE = Path(__file__).resolve().parents[1] / "docs/reference/job.schema.json"


def text() -> str:
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
