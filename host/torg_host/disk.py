"""A bounded disk for one job: an ext4 file system in a file, mounted by loop. Quotas of the host's own file system need set-up that
few hosts have; this needs root and e2fsprogs. Without root it is a plain folder, and the caller is told.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from torg_protocol.errors import TorgError

MINIMUM_BYTES = 16 << 20


class DiskFailed(TorgError):
    """The disk could not be made or mounted: this host's trouble, not the job's."""

    default_code = "disk_failed"


def open_disk(image: Path, mount_point: Path, size_bytes: int) -> bool:
    """Makes (once) and mounts the disk. True when the file system enforces the size. Safe to repeat, also after a reboot.

    Raises DiskFailed.
    """
    mount_point.mkdir(mode=0o755, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return False
    if os.path.ismount(mount_point):
        return True
    if not image.exists():
        _make(image, max(size_bytes, MINIMUM_BYTES))
    _run(["mount", "-o", "loop,nosuid,nodev", str(image), str(mount_point)])
    return True


def close_disk(image: Path, mount_point: Path) -> None:
    """Unmounts and deletes it, with what is on it. Safe to repeat, and when it was never opened."""
    if os.path.ismount(mount_point):
        # Lazily: a process that is just dying may still hold a file; the loop device goes with the last one.
        _run(["umount", "--lazy", str(mount_point)])
    image.unlink(missing_ok=True)


def _make(image: Path, size_bytes: int) -> None:
    """Under another name first: a half-made image is never taken for a disk."""
    making = image.with_suffix(".making")
    making.unlink(missing_ok=True)
    with making.open("wb") as file:
        file.truncate(size_bytes)
    # No journal (its content is not worth one) and no blocks kept for root: the job gets what it asked for.
    _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(making)])
    making.rename(image)


def _run(command: list[str]) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path}, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise DiskFailed(
            f"{command[0]} failed: {said.decode(errors='replace').strip() or error}", field="path", value=command[-1]
        ) from error
