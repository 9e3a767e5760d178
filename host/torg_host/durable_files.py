"""Files that are there after a power cut, whole, once somebody was told that they are.

A name that was given by renaming may outlive the bytes behind it: the file is then empty or full of zeros. So bytes go to the disk before the
name, and the folder with the name before anybody hears of it.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """The bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_for_good(file: Path, target: Path) -> None:
    """Renames a file within its file system, into a folder that is made where it is missing. Raises OSError; then no other file has the name."""
    sync(file)
    try:
        file.replace(target)
    except FileNotFoundError:
        _make_for_good(target.parent)
        file.replace(target)
    sync(target.parent)


def _make_for_good(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)
