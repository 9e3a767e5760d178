"""A disk of its own for each job: an ext4 file system in a file, which the job fills without filling the host.

Needs root and loop devices. Elsewhere it is a plain directory and `enforced` is False; the sandbox then watches what is written.
All methods block for tens of milliseconds (mkfs, mount): call them in a thread.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from torg_host.loop_mount import mount_ext4
from torg_protocol.errors import Unavailable

MIN_BYTES = 4 << 20  # mkfs.ext4 makes nothing useful below
BYTES_PER_INODE = 16384
TOOL_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
TOOL_TIMEOUT_S = 60
LOOP_FREED_WITHIN_S = 5.0
_MOST_BLANKS = 16
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskState:
    files: Path  # where the job's files go
    enforced: bool  # False: nothing but goodwill bounds it
    why: str = ""  # when not enforced


class QuotaDisk:
    """Lives in `directory` as `disk.img` and `files/`, and is found again there by a restarted agent."""

    def __init__(
        self, directory: Path, size_bytes: int, owner: tuple[int, int] | None = None, blanks: Path | None = None
    ) -> None:
        """`owner`: uid and gid of the file system's root directory. A few per cent of the size are ext4's own tables. `blanks`: a folder of
        empty file systems, one for each size that was wanted lately, of which disks are copies: most jobs ask for a size that another has had."""
        self._directory = directory.resolve()
        self._size_bytes = max(MIN_BYTES, size_bytes)
        self._owner, self._blanks = owner, blanks
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
        if (why := self._make()) is not None:
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

    def _make(self) -> str | None:
        """Why there is no disk, or None."""
        if self._copy_blank():
            if self._mount() is None:
                return None
            self._image.unlink()  # a blank that the host lost half of when it went down: made anew
            self._blank().unlink(missing_ok=True)
        return self._format(self._image) or self._mount()

    def _blank(self) -> Path:
        owner = "" if self._owner is None else f"-{self._owner[0]}-{self._owner[1]}"
        return (self._blanks or self._directory) / f"{self._size_bytes}{owner}.img"

    def _copy_blank(self) -> bool:
        """False where none are kept, or this size cannot be made."""
        if self._blanks is None:
            return False
        blank, partial = self._blank(), self._directory / "disk.img.partial"
        try:
            self._blanks.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not blank.exists():
                if self._format(blank, to_last=True) is not None:
                    return False
                _forget_oldest(self._blanks)
            os.utime(blank)
            _copy_sparse(blank, partial)
            partial.rename(self._image)
        except OSError:  # gone meanwhile, or no room for it
            partial.unlink(missing_ok=True)
            return False
        return True

    def _format(self, image: Path, *, to_last: bool = False) -> str | None:
        """`to_last`: is on the host's disk before it has its name, so that no crash of the host leaves half of one."""
        partial = image.with_name(f"{image.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            partial.touch()
            os.truncate(partial, self._size_bytes)
            owner = f"root_owner={self._owner[0]}:{self._owner[1]}," if self._owner else ""
            # No journal: the disk dies with its job, there is nothing to recover. The file's holes are the zeros
            # that inode tables want, so nobody writes them: not mkfs now, nor the kernel in the background (see `_mount`).
            options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-i", str(BYTES_PER_INODE)]
            why = _run("mkfs.ext4", *options, "-E", f"{owner}nodiscard,lazy_itable_init=1", str(partial))
            if to_last and not why:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            why = str(error)
        if why:
            partial.unlink(missing_ok=True)
            return why
        partial.rename(image)
        return None

    def _mount(self) -> str | None:
        try:
            mount_ext4(self._image, self.files)
        except OSError:
            pass  # an older kernel, or a real reason, which the tool says better
        else:
            return None
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


def _copy_sparse(source: Path, target: Path) -> None:
    """What is written in it, which of an empty file system is little; holes stay holes."""
    with source.open("rb") as old, target.open("wb") as new:
        size, position = os.fstat(old.fileno()).st_size, 0
        os.truncate(new.fileno(), size)
        while position < size:
            try:
                begin = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but holes from here on
                    return
                raise
            position = os.lseek(old.fileno(), begin, os.SEEK_HOLE)
            while begin < position:
                piece = os.pread(old.fileno(), min(_PIECE_BYTES, position - begin), begin)
                if not piece:
                    raise OSError(errno.EIO, f"{source} has become shorter")
                begin += os.pwrite(new.fileno(), piece, begin)


def _forget_oldest(blanks: Path) -> None:
    """Down to the bound; what is half-made, by a process that is gone perhaps, counts and goes in its turn."""
    kept = sorted(blanks.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[_MOST_BLANKS:]:
        path.unlink(missing_ok=True)


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
