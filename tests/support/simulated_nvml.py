"""The SIMULATED NVML as a shared library, and programs that run with it in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("simulated_nvml.c")


def build(folder: Path) -> Path:
    """The folder to put into LD_LIBRARY_PATH."""
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o"]
    subprocess.run([*command, str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True, timeout=110)
    return folder


def run(library: Path, program: str, **settings: object) -> Any:
    """What `program` prints, as JSON. `gpus=2` becomes TORG_SIMULATED_GPUS=2."""
    environment = {f"TORG_SIMULATED_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(library), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
