"""Executes one segment of a training inside a job's container, and hands over the checkpoint (or the model) that it came to.

    python -c SOURCE NAME COMMAND...

Runs COMMAND, which goes on from the checkpoint that is there, until the checkpoint NAME is complete; with NAME "" to its end. Ends with 0 also
when the command fails: then `answer.safetensors` is empty, and `segment.json` says why. Whoever executes this is not told what the
answer should be. The standard library only: the image is the job's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.02
WANTED = "TORG_CHECKPOINT_AT"  # one that SIGTERM made is none that the job would write by itself
ANSWER, REPORT = "answer.safetensors", "segment.json"
STATE, SCALARS, MODEL = "state.safetensors", "state.json", "model.safetensors"


def main(name: str, command: list[str]) -> int:
    checkpoints, outputs = Path(os.environ["TORG_CHECKPOINT_DIR"]), Path(os.environ["TORG_OUTPUT_DIR"])
    own = Path.cwd() / ".segment"  # where the command writes its outputs: ours are others
    own.mkdir(exist_ok=True)
    child = subprocess.Popen(command, env={**os.environ, "TORG_OUTPUT_DIR": str(own), WANTED: name})
    try:
        reached = _until(checkpoints / name, outputs, child) if name else False
        if not reached and child.wait() == 0 and not name and (own / MODEL).is_file():
            shutil.copyfile(own / MODEL, outputs / ANSWER)
            reached = True
    finally:
        child.kill()
        child.wait()
    if not reached:
        (outputs / ANSWER).touch()
    code = None if reached and name else child.returncode
    (outputs / REPORT).write_text(json.dumps({"reached": reached, "code": code}))
    return 0


def whole(state: Path) -> bytes:
    """A checkpoint in one file: its tensors, and what is beside them as a note in the file's header. A bare model is as it is."""
    data, beside = state.read_bytes(), state.with_name(SCALARS)
    if state.name != STATE:
        return data
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = {**header.get("__metadata__", {}), SCALARS: beside.read_text()}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[begin:]


def _until(wanted: Path, outputs: Path, child: subprocess.Popen[bytes]) -> bool:
    """Copies the checkpoint as soon as it is there; False when the command has ended without."""
    while True:
        ended = child.poll() is not None
        try:
            (outputs / f".{ANSWER}").write_bytes(whole(wanted / STATE))
        except OSError:  # not there yet; or the job is tidying up just now, and it is gone
            if ended:
                return False
            time.sleep(POLL_S)
            continue
        (outputs / f".{ANSWER}").replace(outputs / ANSWER)
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
