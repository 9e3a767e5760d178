"""Looking through folders in which processes make and remove files and folders meanwhile, and the kernel's own."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path


def matching(folder: Path, *patterns: str) -> list[Path]:
    """What there is below `folder` that fits a pattern (`**` is any depth), sorted. Passes over folders that go while it looks, where
    `Path.glob` raises (Python 3.11); what it found may be gone by the time it is used."""
    found = {
        path
        for pattern in patterns
        for path in glob.iglob(pattern, root_dir=folder, recursive=True, include_hidden=True)  # noqa: PTH207
    }
    return sorted(folder / path for path in found)


def control_groups(*prefixes: str) -> list[Path]:
    """Groups whose names begin so ("torg/1f2e3d4c-"), of every controller where each has its own tree (v1)."""
    return matching(Path("/sys/fs/cgroup"), *(f"{above}{prefix}*" for prefix in prefixes for above in ("", "*/")))


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
