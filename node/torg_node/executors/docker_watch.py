"""Watches one running container while the agent lives: its deadline to the millisecond, its disk, its peak memory.

Without the agent the alarm still ends the job a little later, and a folder on a file system of its own still bounds its disk; only
plain folders are then unwatched.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torg_host.sandbox import processes, watch
from torg_node.executors.docker_cgroup import MemoryReading, container_cgroup, read_memory
from torg_node.executors.docker_exit import CLOCKS_APART_MS, Ending, engine_time_ms
from torg_node.executors.port import ExitReason

_INTERVAL_S = 1.0
_FIRST_LOOK_S = 0.1  # short jobs shall have a peak too
_DISK_SHARE_OF_CORE = 20  # looking at the disk may take at most a twentieth of one core


class EndingFile:
    """Keeps the first reason for ending a container, so that a restarted agent knows it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write_once(self, ending: Ending) -> None:
        if not self._path.exists():
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps({"reason": ending.reason, "detail": ending.detail}))
            partial.replace(self._path)

    def read(self) -> Ending | None:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        return Ending(ExitReason(found["reason"]), str(found["detail"]))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Watched:
    """What an inspected container's limits were, read back from the engine so that a restarted agent knows them too."""

    pid: int
    started_at_ms: int
    max_duration_ms: int
    disk_bytes: int
    quota_folders: tuple[Path, ...]  # writable, on file systems no larger than the limit: the kernel bounds them
    plain_folders: tuple[Path, ...]  # writable, bounded only by looking

    @property
    def deadline_ms(self) -> int:
        return self.started_at_ms + self.max_duration_ms

    def disk_is_full(self) -> bool:
        """The last word, once the container ended. A single file stops exactly at the limit, which no look may have met."""
        if any(watch.is_full(str(folder)) for folder in self.quota_folders):
            return True
        return bool(self.plain_folders) and self.disk_used_bytes() >= self.disk_bytes

    def disk_used_bytes(self) -> int:
        return sum(watch.used_bytes(str(folder)) for folder in self.plain_folders)


def running_since_ms(container: Mapping[str, Any], now_ms: Callable[[], int]) -> int:
    """By the caller's clock. The engine tells the host's time of then: where that has been set since, the age of the container's first process
    counts, which is a little older than the job."""
    said_ms, pid = engine_time_ms(container["State"]["StartedAt"]), int(container["State"]["Pid"])
    if not pid or (ticks := processes.start_time(pid)) is None:
        return said_ms
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    aged_ms = now_ms() - round(age_s * 1000)
    return said_ms if abs(said_ms - aged_ms) <= CLOCKS_APART_MS else aged_ms


def watched(
    container: Mapping[str, Any], *, max_duration_ms: int, disk_bytes: int, now_ms: Callable[[], int]
) -> Watched:
    mounts = container["HostConfig"].get("Mounts") or []
    writable = [Path(mount["Source"]) for mount in mounts if not mount.get("ReadOnly")]
    quotas = tuple(folder for folder in writable if _is_no_larger(folder, disk_bytes))
    return Watched(
        pid=int(container["State"]["Pid"]),
        started_at_ms=running_since_ms(container, now_ms),
        max_duration_ms=max_duration_ms,
        disk_bytes=disk_bytes,
        quota_folders=quotas,
        plain_folders=tuple(folder for folder in writable if folder not in quotas and folder.is_dir()),
    )


def _is_no_larger(folder: Path, limit_bytes: int) -> bool:
    try:
        status = os.statvfs(folder)
    except OSError:  # unmounted meanwhile
        return False
    return status.f_blocks * status.f_frsize <= limit_bytes


async def watch_container(
    target: Watched,
    ended: asyncio.Task[Any],
    *,
    now_ms: Callable[[], int],
    saw: Callable[[MemoryReading], None],
    end: Callable[[Ending], Awaitable[None]],
) -> None:
    """Looks until `ended` is done; tells `saw` what the cgroup shows; calls `end` at most once, when a limit was passed."""
    cgroup = container_cgroup(target.pid)
    look_at_disk_at = 0.0
    interval_s = _FIRST_LOOK_S
    is_ending = False
    while not ended.done():
        if cgroup and (reading := read_memory(cgroup)):
            saw(reading)
        over: Ending | None = None
        if now_ms() >= target.deadline_ms:
            over = Ending(ExitReason.MAX_DURATION, f"ran for its longest time of {target.max_duration_ms} ms")
        elif target.plain_folders and time.monotonic() >= look_at_disk_at:
            began = time.monotonic()
            used_bytes = await asyncio.to_thread(target.disk_used_bytes)
            look_at_disk_at = time.monotonic() + _DISK_SHARE_OF_CORE * (time.monotonic() - began)
            if used_bytes > target.disk_bytes:
                over = Ending(ExitReason.DISK_FULL, f"{used_bytes} bytes written, the limit is {target.disk_bytes}")
        if over and not is_ending:
            is_ending = True
            await end(over)
        left_s = max((target.deadline_ms - now_ms()) / 1000, 0.0) if not is_ending else _INTERVAL_S
        await asyncio.wait({ended}, timeout=min(interval_s, left_s + 0.001))
        interval_s = min(2 * interval_s, _INTERVAL_S)
