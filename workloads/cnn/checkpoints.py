"""Checkpoints that survive a kill at any moment: a directory `step-00000123` that appears complete or not at all.

No pickle: tensors are safetensors, everything else is JSON (whose floats survive the round trip bit for bit).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

KEPT = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Written under a hidden name, flushed to the disk, then renamed. Older ones than the newest two are removed. Safe twice."""
    final = directory / f"step-{checkpoint.step:08d}"
    if final.exists():
        return
    temporary = directory / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_durably(temporary / "state.safetensors", save(checkpoint.tensors))
    _write_durably(temporary / "state.json", json.dumps(checkpoint.scalars).encode())
    _sync_directory(temporary)
    temporary.rename(final)
    _sync_directory(directory)
    for _, old in _complete(directory)[:-KEPT]:
        shutil.rmtree(old)


def newest(directory: Path) -> Checkpoint | None:
    """The complete checkpoint with the highest step, or None. Removes what a killed run left half written."""
    for leftover in directory.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    complete = _complete(directory)
    if not complete:
        return None
    step, path = complete[-1]
    return Checkpoint(
        step=step,
        tensors=load((path / "state.safetensors").read_bytes()),
        scalars=json.loads((path / "state.json").read_text()),
    )


def _complete(directory: Path) -> list[tuple[int, Path]]:
    found = [(match, path) for path in directory.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
