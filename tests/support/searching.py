"""Looking for bytes in folders in which processes make and remove files meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Regular files, no links. Passes over files and folders that go while it looks, where `Path.rglob` raises."""
    for at, _, names in os.walk(folder):
        for name in names:
            path = Path(at) / name
            if path.is_file() and not path.is_symlink():
                yield path


def holds(path: Path, needle: bytes) -> bool:
    """False for what is gone meanwhile or may not be read."""
    try:
        return needle in path.read_bytes()
    except OSError:
        return False


def places_that_hold(needle: bytes, folder: Path) -> list[str]:
    """Files below `folder`, and processes' arguments and environments, that hold the needle. This process itself may."""
    found = [str(path) for path in files_below(folder) if holds(path, needle)]
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            found += [str(directory / name) for name in ("cmdline", "environ") if holds(directory / name, needle)]
    return found
