"""How much disk a job takes: for directories that no quota guards, and to tell a full disk from another failure."""

from __future__ import annotations

import errno
import os

BLOCK_BYTES = 512
UNMEASURABLE = 1 << 62
ALMOST_FULL_BYTES = 256 << 10  # a writer of larger pieces fails before the last block is taken


def used_bytes(path: str) -> int:
    """Blocks taken below `path`, links not followed. What vanishes meanwhile counts as nothing.

    Directories nested beyond what a path can name count as everything: they are made to hide files from this very count.
    """
    total = 0
    waiting = [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += _blocks(entry, waiting)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return UNMEASURABLE
    return total


def is_full(path: str) -> bool:
    """Whether the file system that holds `path` has no room, or no more files, left."""
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    size = status.f_blocks * status.f_frsize
    free = status.f_bavail * status.f_frsize
    return free < max(ALMOST_FULL_BYTES, size // 100) or (status.f_files > 0 and status.f_ffree == 0)


def _blocks(entry: os.DirEntry[str], waiting: list[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            waiting.append(entry.path)
        return entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
    except OSError:
        return 0
