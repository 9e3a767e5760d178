"""A disk of its own for each job: an ext4 file system in a file, which the job fills without filling the host.

Needs root and loop devices. Elsewhere it is a plain directory and `enforced` is False; the sandbox then watches what is written.
All methods block for tens of milliseconds (mkfs, mount): call them in a thread.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from torg_protocol.errors import Unavailable

MIN_BYTES = 4 << 20  # mkfs.ext4 makes nothing useful below
BYTES_PER_INODE = 16384
TOOL_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
TOOL_TIMEOUT_S = 60
LOOP_FREED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class DiskState:
    files: Path  # where the job's files go
    enforced: bool  # False: nothing but goodwill bounds it
    why: str = ""  # when not enforced


class QuotaDisk:
    """Lives in `directory` as `disk.img` and `files/`, and is found again there by a restarted agent."""

    def __init__(self, directory: Path, size_bytes: int, owner: tuple[int, int] | None = None) -> None:
        """`owner`: uid and gid of the file system's root directory. A few per cent of the size are ext4's own tables."""
        self._directory = directory.resolve()
        self._size_bytes = max(MIN_BYTES, size_bytes)
        self._owner = owner
        self._image = self._directory / "disk.img"
        self.files = self._directory / "files"

    def open(self) -> DiskState:
        """Creates and mounts it, or whichever of that is missing. Safe to repeat, and after a crash in between.

        Raises Unavailable `disk_broken` when an existing image cannot be mounted any more.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        if self.is_mounted():
            return DiskState(self.files, enforced=True)
        if os.geteuid() != 0:
            return DiskState(self.files, enforced=False, why="disk quotas need root")
        if self._image.exists():
            self._mount_existing()
            return DiskState(self.files, enforced=True)
        if (why := self._make_image()) or (why := self._mount()):
            self._image.unlink(missing_ok=True)
            self._give_root_to_owner()
            return DiskState(self.files, enforced=False, why=why)
        (self.files / "lost+found").rmdir()
        return DiskState(self.files, enforced=True)

    def is_mounted(self) -> bool:
        return str(self.files) in _mount_points()

    def remove(self) -> None:
        """Unmounts it and deletes everything. Safe to repeat. Raises Unavailable `disk_busy` while something still uses it."""
        while self.is_mounted():
            if why := _run("umount", str(self.files)):
                raise Unavailable(
                    f"the job's disk is in use: {why}", code="disk_busy", field="disk", value=str(self.files)
                )
        deadline = time.monotonic() + LOOP_FREED_WITHIN_S
        while self._image.exists() and _loop_devices_of(self._image) and time.monotonic() < deadline:
            time.sleep(0.02)
        delete_tree(self._directory)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _make_image(self) -> str | None:
        partial = self._directory / "disk.img.partial"
        try:
            with partial.open("wb") as file:
                os.truncate(file.fileno(), self._size_bytes)
            owner = f"root_owner={self._owner[0]}:{self._owner[1]}," if self._owner else ""
            # No journal: the disk dies with its job, there is nothing to recover. The file's holes are the zeros
            # that inode tables want, so nobody writes them: not mkfs now, nor the kernel in the background (see `_mount`).
            options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-i", str(BYTES_PER_INODE)]
            why = _run("mkfs.ext4", *options, "-E", f"{owner}nodiscard,lazy_itable_init=1", str(partial))
        except OSError as error:
            why = str(error)
        if why:
            partial.unlink(missing_ok=True)
            return why
        partial.rename(self._image)
        return None

    def _mount(self) -> str | None:
        return _run(
            "mount", "-t", "ext4", "-o", "loop,nosuid,nodev,noatime,noinit_itable", str(self._image), str(self.files)
        )

    def _mount_existing(self) -> None:
        if why := self._mount():
            raise Unavailable(
                f"the job's disk cannot be mounted again: {why}",
                code="disk_broken",
                field="disk",
                value=str(self._image),
            )

    def _give_root_to_owner(self) -> None:
        if self._owner:
            os.chown(self.files, *self._owner)


def delete_tree(root: Path) -> None:
    """Deletes what a job may have made to be hard to delete. Never through links; safe to repeat; what cannot go is left."""
    try:
        shutil.rmtree(root, ignore_errors=True)
    except RecursionError:  # thousands of directories in one another: `rm` does not recurse
        _run("rm", "-rf", "--", str(root))


def _mount_points() -> set[str]:
    """The kernel writes blanks, newlines and backslashes of a path as a backslash and three octal digits."""
    escaped = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), path) for path in escaped}


def _loop_devices_of(image: Path) -> list[Path]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip().removesuffix(" (deleted)") == str(image):
                found.append(Path("/dev") / backing.parts[3])
        except OSError:
            continue  # detached in this moment
    return found


def _run(tool: str, *arguments: str) -> str | None:
    """Why it failed, or None."""
    found = shutil.which(tool, path=TOOL_PATH)
    if found is None:
        return f"{tool} is not installed"
    done = subprocess.run(
        [found, *arguments],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return None if done.returncode == 0 else (done.stderr.strip() or f"{tool} ended with code {done.returncode}")
