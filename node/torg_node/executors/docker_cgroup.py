"""What only the kernel knows of a running container: its peak memory and its out-of-memory kills.

Read on this host through the container's main process, so it needs an agent that sees the host's processes and cgroups; where
it does not, there is no reading and the engine's own word has to do. The engine removes the cgroup with the container's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torg_host.cgroups import Cgroup, detect


@dataclass(frozen=True, slots=True)
class MemoryReading:
    peak_bytes: int | None = None
    oom_kills: int = 0

    def merged(self, later: MemoryReading) -> MemoryReading:
        peaks = [peak for peak in (self.peak_bytes, later.peak_bytes) if peak is not None]
        return MemoryReading(max(peaks, default=None), max(self.oom_kills, later.oom_kills))


def container_cgroup(pid: int) -> Cgroup | None:
    """The group that the engine made for the container whose main process is `pid`."""
    hierarchy = detect()
    if hierarchy is None or pid <= 0:
        return None
    try:
        name = memory_group(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return Cgroup(hierarchy, name) if name else None


def memory_group(proc_cgroup: str) -> str:
    """From the text of /proc/PID/cgroup: the path in v1's memory hierarchy where there is one, else in v2's only one."""
    paths = {
        controllers: path for _number, controllers, path in (line.split(":", 2) for line in proc_cgroup.splitlines())
    }
    for controllers, path in paths.items():
        if "memory" in controllers.split(","):
            return path.strip("/")
    return paths.get("", "").strip("/")


def read_memory(group: Cgroup) -> MemoryReading | None:
    """None once the group is gone."""
    if not group.exists():
        return None
    return MemoryReading(peak_bytes=group.peak_memory_bytes(), oom_kills=group.oom_kills())
