"""SIMULATED libraries of a host, compiled from C, and programs that run with them in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def compile_library(library: Path, source: Path) -> None:
    """`source` as the shared library `library`, by the compiler that PyPI's ziglang brings."""
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o"]
    subprocess.run([*command, str(library), str(source)], check=True, timeout=110)


def run_with(environment: Mapping[str, str], program: str, prefix: str, settings: Mapping[str, object]) -> Any:
    """What `program` prints, as JSON. Each of the settings becomes a variable: PREFIX_NAME."""
    told = {f"{prefix}_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, **told},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
