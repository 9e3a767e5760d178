# The sandbox's shim imports this, and pathlib alone would cost it 6 ms per job.
# ruff: noqa: PTH102, PTH106, PTH112, PTH123
"""One control group per job, on cgroup v1 and v2: limits for memory, processes and CPU, and what the kernel counted.

Only the standard library, and little of it: the shim of every sandbox imports this module. All file operations are small
and local; `kill_all` and `remove` may sleep for milliseconds and are called from threads or from the shim.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_US = 100_000
ATTEMPT_PAUSE_S = 0.002
PEAK_SLACK_BYTES = 4 << 20


class CgroupError(Exception):
    """The kernel refused an operation on a group; says which file."""


class Hierarchy:
    """Where this host's controllers are mounted. On v2 all three share one path."""

    def __init__(self, version: int, roots: dict[str, str]) -> None:
        self.version = version
        self.roots = roots

    def __repr__(self) -> str:
        return f"Hierarchy(version={self.version}, roots={self.roots})"


def detect(mountinfo: str = "/proc/self/mountinfo") -> Hierarchy | None:
    """The hierarchy that this process can make groups in; None when it may not (no root) or a controller is missing.

    Hosts may mount v1 controllers and an almost empty v2 tree side by side ("hybrid"): v1 wins where it has all three.
    """
    v1: dict[str, str] = {}
    v2: str | None = None
    with open(mountinfo) as file:
        for line in file:
            before, _, after = line.partition(" - ")
            mount_point = before.split()[4]
            kind, _, options = after.split()[:3]
            if kind == "cgroup":
                v1.update({name: mount_point for name in CONTROLLERS if name in options.split(",")})
            elif kind == "cgroup2":
                v2 = v2 or mount_point
    if len(v1) == len(CONTROLLERS):
        return Hierarchy(1, v1) if all(os.access(root, os.W_OK) for root in v1.values()) else None
    if v2 and set(CONTROLLERS) <= set(_read(f"{v2}/cgroup.controllers").split()) and os.access(v2, os.W_OK):
        return Hierarchy(2, dict.fromkeys(CONTROLLERS, v2))
    return None


def names_below(hierarchy: Hierarchy, parent: str) -> list[str]:
    """Names of all groups directly below `parent`, in whichever controller they still are."""
    found: set[str] = set()
    for root in dict.fromkeys(hierarchy.roots.values()):
        with contextlib.suppress(FileNotFoundError):
            found.update(entry.name for entry in os.scandir(f"{root}/{parent}") if entry.is_dir())
    return sorted(f"{parent}/{name}" for name in found)


class Cgroup:
    """A group named `name` ("torg/ab12-lease"). Names are kept in files, so a group can be found after any restart."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not a group name: {name!r}")
        self._hierarchy = hierarchy
        self.name = name

    def create(self, *, memory_bytes: int, pids: int, cpu_millis: int) -> None:
        """Makes the group with these limits, or sets them anew. Without swap: the memory limit is all there is."""
        for attempt in range(5):
            try:
                self._make_directories()
                break
            except (FileNotFoundError, CgroupError):
                # Another job's `remove` took the empty parent away in between.
                if attempt == 4:
                    raise
        quota = max(1000, cpu_millis * CPU_PERIOD_US // 1000)  # the kernel takes no less than 1 ms
        if self._hierarchy.version == 1:
            # Swap is limited through memory + swap, which may not be below memory: order matters, and so does its absence.
            self._write("memory", "memory.limit_in_bytes", memory_bytes)
            self._write("memory", "memory.memsw.limit_in_bytes", memory_bytes, optional=True)
            self._write("cpu", "cpu.cfs_period_us", CPU_PERIOD_US)
            self._write("cpu", "cpu.cfs_quota_us", quota)
        else:
            self._write("memory", "memory.max", memory_bytes)
            self._write("memory", "memory.swap.max", 0, optional=True)
            self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
        self._write("pids", "pids.max", pids)

    def add(self, pid: int) -> None:
        """Moves a process in; its children follow. Waits until no process of the host forks or ends, some ten milliseconds."""
        for path in self._paths():
            _write_file(f"{path}/cgroup.procs", str(pid))

    def join(self) -> None:
        """Moves the calling process in, which has one thread; its children follow. It may do so before it gives up root.

        On v1 by thread, which waits for nobody.
        """
        name, who = ("tasks", "0") if self._hierarchy.version == 1 else ("cgroup.procs", str(os.getpid()))
        for path in self._paths():
            _write_file(f"{path}/{name}", who)

    def processes(self) -> list[int]:
        return sorted({int(pid) for path in self._paths() for pid in _read(f"{path}/cgroup.procs").split()})

    def oom_kills(self) -> int:
        """Processes of this group that the kernel killed for memory, at its own limit. Gone with the group: read before
        `remove`. Kills because the whole host was short count as `host_oom_kills`."""
        return self._kills() if self._hit_own_limit() else 0

    def host_oom_kills(self) -> int:
        return 0 if self._hit_own_limit() else self._kills()

    def peak_memory_bytes(self) -> int | None:
        """Highest use, page cache included; None on a v2 kernel before 5.19, which does not keep it."""
        file = "memory.max_usage_in_bytes" if self._hierarchy.version == 1 else "memory.peak"
        text = _read(f"{self._path('memory')}/{file}").strip()
        return int(text) if text else None

    def kill_all(self, timeout_s: float = 5.0) -> bool:
        """SIGKILL to every process inside; True when the group is empty. A fork bomb cannot outrun it."""
        self._write("pids", "pids.max", 0, optional=True)
        if self._hierarchy.version == 2:
            self._write("memory", "cgroup.kill", 1, optional=True)
        deadline = time.monotonic() + timeout_s
        while processes := self.processes():
            _kill_each(processes)
            if time.monotonic() > deadline:
                return False
            time.sleep(ATTEMPT_PAUSE_S)
        return True

    def remove(self, timeout_s: float = 5.0) -> bool:
        """Kills what is left and removes the group, and its parent when that was the last one. Safe to repeat."""
        if not self.kill_all(timeout_s):
            return False
        deadline = time.monotonic() + timeout_s
        for path in self._paths():
            while os.path.isdir(path):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    break
                except OSError:  # busy for a moment after the last process died
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(ATTEMPT_PAUSE_S)
        self._remove_empty_parents()
        return True

    def exists(self) -> bool:
        return any(os.path.isdir(path) for path in self._paths())

    # --- parts ------------------------------------------------------------------------------------------------------

    def _path(self, controller: str) -> str:
        return f"{self._hierarchy.roots[controller]}/{self.name}"

    def _paths(self) -> list[str]:
        return list(dict.fromkeys(self._path(controller) for controller in CONTROLLERS))

    def _make_directories(self) -> None:
        for controller in CONTROLLERS:
            path = self._hierarchy.roots[controller]
            for part in self.name.split("/"):
                if self._hierarchy.version == 2:
                    # A v2 group has a controller's files only when its parent hands the controller down.
                    _write_file(f"{path}/cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))
                path = f"{path}/{part}"
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o755)

    def _remove_empty_parents(self) -> None:
        parent = self.name.rpartition("/")[0]
        while parent:
            for root in dict.fromkeys(self._hierarchy.roots.values()):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{root}/{parent}")
            parent = parent.rpartition("/")[0]

    def _kills(self) -> int:
        file = "memory.oom_control" if self._hierarchy.version == 1 else "memory.events"
        return _field(_read(f"{self._path('memory')}/{file}"), "oom_kill")

    def _hit_own_limit(self) -> bool:
        if self._hierarchy.version == 1:
            # Not memory.failcnt: kernels after 6.11 no longer count there. The kernel charges in batches, so the peak may
            # stay a little below the limit.
            limit = int(_read(f"{self._path('memory')}/memory.limit_in_bytes").strip() or 0)
            return (self.peak_memory_bytes() or 0) >= limit - PEAK_SLACK_BYTES
        return _field(_read(f"{self._path('memory')}/memory.events"), "max") > 0

    def _write(self, controller: str, file: str, value: int | str, *, optional: bool = False) -> None:
        try:
            _write_file(f"{self._path(controller)}/{file}", str(value))
        except CgroupError:
            if not optional:
                raise


def _field(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write_file(path: str, value: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CgroupError(f"writing {value!r} to {path}: {error.strerror}") from error


def _kill_each(processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
