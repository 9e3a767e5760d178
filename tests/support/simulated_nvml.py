"""The SIMULATED NVML as a shared library, and programs that run with it in a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.simulated_library import compile_library, run_with

SOURCE = Path(__file__).with_name("simulated_nvml.c")


def build(folder: Path) -> Path:
    """The folder to put into LD_LIBRARY_PATH."""
    compile_library(folder / "libnvidia-ml.so.1", SOURCE)
    return folder


def run(library: Path, program: str, **settings: object) -> Any:
    """What `program` prints, as JSON. `gpus=2` becomes TORG_SIMULATED_GPUS=2."""
    return run_with({"LD_LIBRARY_PATH": str(library)}, program, "TORG_SIMULATED", settings)
