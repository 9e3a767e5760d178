# The sandbox's shim imports this, and pathlib alone would cost it 6 ms per job.
# ruff: noqa: PTH103, PTH112, PTH115, PTH120, PTH211
"""A root directory of our own for bubblewrap to start from, holding only what the container needs.

Used when the agent is root. Bubblewrap must then run as an unprivileged user (as root it would leave its children host root),
but such a user cannot enter a source below somebody's home. So the child binds the sources into a private mount namespace while it
still is root. The rest of the host's file system is let go, which also keeps no other job's disk image busy.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def enter(
    directory: str,
    binds: Sequence[Sequence[str]],
    links: Sequence[Sequence[str]],
    layers: Sequence[Sequence[str | None]] = (),
) -> None:
    """Call in a forked child, as root, single-threaded. `binds`: (source, place, "tree" or "one"); `links`: (target, place); `layers`:
    (place, lower directory or None, directory that takes what is written, overlayfs's own next to it).

    A source that is a link, or is reached through one, is refused: the job of an earlier task may have planted it.
    `directory` must exist; nothing appears in it outside this process.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for source, place, extent in binds:
        _bind(source, directory + place, MS_BIND | MS_REC if extent == "tree" else MS_BIND)
    for at, lower, upper, work in layers:
        _layer(f"{directory}{at}", lower, str(upper), str(work))
    for target, place in links:
        os.symlink(target, directory + place)
    os.makedirs(directory + "/tmp", exist_ok=True)  # noqa: S108  bubblewrap's own mount point
    os.chdir(directory)
    # The new root on top of the old one, then the old one let go: needs no directory for it.
    _check(_libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _layer(place: str, lower: str | None, upper: str, work: str) -> None:
    """The mount dies with this process's mount namespace. By descriptors: paths may hold what overlayfs's options cannot say, and the
    container's list of mounts shows them."""
    if lower is None:
        _bind(upper, place, MS_BIND)
        return
    os.makedirs(place)
    held = [_open_source(path) for path in (lower, upper, work)]
    lower_fd, upper_fd, work_fd = (f"/proc/self/fd/{descriptor}" for descriptor in held)
    # What is off would let a layer that a job wrote point elsewhere, or hold less than whole files.
    options = (
        f"lowerdir={lower_fd},upperdir={upper_fd},workdir={work_fd},index=off,metacopy=off,redirect_dir=off,xino=off"
    )
    try:
        _mount("overlay", place, "overlay", MS_NOSUID | MS_NODEV, options)
    finally:
        for descriptor in held:
            os.close(descriptor)


def _open_source(source: str) -> int:
    descriptor = os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.readlink(f"/proc/self/fd/{descriptor}")
    if found != source:
        os.close(descriptor)
        raise OSError(0, f"mount source {source} is a link to {found}")
    return descriptor


def _bind(source: str, place: str, flags: int) -> None:
    descriptor = _open_source(source)
    try:
        if os.path.isdir(source):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        _mount(f"/proc/self/fd/{descriptor}", place, None, flags)
    finally:
        os.close(descriptor)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(
        _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {source} on {target}"
    )


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
