"""Executes one segment of a training inside a job's container, and hands over the weights that it came to.

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
ANSWER, REPORT = "answer.safetensors", "segment.json"
STATE, MODEL = "state.safetensors", "model.safetensors"


def main(name: str, command: list[str]) -> int:
    checkpoints, outputs = Path(os.environ["TORG_CHECKPOINT_DIR"]), Path(os.environ["TORG_OUTPUT_DIR"])
    own = Path.cwd() / ".segment"  # where the command writes its outputs: ours are others
    own.mkdir(exist_ok=True)
    child = subprocess.Popen(command, env={**os.environ, "TORG_OUTPUT_DIR": str(own)})
    try:
        reached = _until(checkpoints / name / STATE, outputs, child) if name else False
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


def _until(wanted: Path, outputs: Path, child: subprocess.Popen[bytes]) -> bool:
    """Copies the weights as soon as their checkpoint is there; False when the command has ended without."""
    while True:
        ended = child.poll() is not None
        try:
            shutil.copyfile(wanted, outputs / f".{ANSWER}")
        except OSError:  # not there yet; or the job is tidying up just now, and it is gone
            if ended:
                return False
            time.sleep(POLL_S)
            continue
        (outputs / f".{ANSWER}").replace(outputs / ANSWER)
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
