# The shim imports this, and pathlib alone would cost it 6 ms per job.
# ruff: noqa: PTH123
"""Naming a process so that a recycled process id, or a reboot, is never taken for it."""

from __future__ import annotations

import os


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_time(pid: int) -> int | None:
    """Clock ticks since boot; with the pid and the boot id it names a process for good. None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def open_if_same(pid: int, started: int, boot: str) -> int | None:
    """A pidfd of exactly that process, or None when it has ended."""
    if boot != boot_id():
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == started:
        return descriptor
    os.close(descriptor)
    return None


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
