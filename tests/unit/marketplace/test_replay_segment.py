"""The script that executes one segment inside a job's container: run as it is run there, and what it hands over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import torg_marketplace.replay_segment as script

WRITES_TWO = """
import os, pathlib, time
where = pathlib.Path(os.environ["TORG_CHECKPOINT_DIR"])
for name in ("step-1", "step-2"):
    (where / ("." + name)).mkdir()
    header = b'{"w":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}}'
    state = len(header).to_bytes(8, "little") + header + name.encode()
    (where / ("." + name) / "state.safetensors").write_bytes(state)
    (where / ("." + name) / "state.json").write_text('{"of": "' + name + '"}')
    (where / ("." + name)).rename(where / name)
pathlib.Path(os.environ["TORG_OUTPUT_DIR"], "model.safetensors").write_bytes(b"model")
"""
AS_ASKED = """
import os, pathlib
where = pathlib.Path(os.environ["TORG_CHECKPOINT_DIR"], os.environ["TORG_CHECKPOINT_AT"])
where.mkdir()
(where / "state.json").write_text("{}")
header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
(where / "state.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"w")
"""
GOES_ON = "\nwhile True: time.sleep(0.1)"


@pytest.mark.parametrize(
    ("name", "program", "answer", "report"),
    [
        ("step-1", WRITES_TWO + GOES_ON, (b"step-1", '{"of": "step-1"}'), {"reached": True, "code": None}),
        ("step-7", AS_ASKED, (b"w", "{}"), {"reached": True, "code": None}),
        ("", WRITES_TWO, b"model", {"reached": True, "code": 0}),
        ("step-3", WRITES_TWO, b"", {"reached": False, "code": 0}),
        ("step-1", "raise SystemExit(3)", b"", {"reached": False, "code": 3}),
        ("", "raise SystemExit(3)", b"", {"reached": False, "code": 3}),
    ],
)
def test_it_hands_over_all_of_one_checkpoint_or_the_model_or_says_why_not(
    tmp_path: Path, name: str, program: str, answer: bytes | tuple[bytes, str], report: dict[str, object]
) -> None:
    for folder in ("work", "checkpoints", "outputs"):
        (tmp_path / folder).mkdir()
    env = os.environ | {
        "TORG_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "TORG_OUTPUT_DIR": str(tmp_path / "outputs"),
    }
    source = Path(script.__file__).read_text()
    command = [sys.executable, "-c", source, name, sys.executable, "-c", program]
    assert subprocess.run(command, cwd=tmp_path / "work", env=env, timeout=60, check=False).returncode == 0
    handed_over = tmp_path / "outputs" / script.ANSWER
    if isinstance(answer, bytes):
        assert handed_over.read_bytes() == answer
    else:
        with safe_open(handed_over, framework="numpy") as file:
            assert (file.get_tensor("w").tobytes(), file.metadata()[script.SCALARS]) == answer
    assert json.loads((tmp_path / "outputs" / script.REPORT).read_text()) == report
