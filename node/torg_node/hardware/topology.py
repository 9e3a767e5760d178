"""Which processors this agent may use, and where they and the GPUs sit: read from sysfs, below `root` in tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path("/")


def cpus_by_numa_node(root: Path = _ROOT, allowed: Iterable[int] | None = None) -> dict[int, int]:
    """NUMA node by processor number, for those that this process may run on. Node 0 where the kernel names none."""
    usable = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    node_of: dict[int, int] = {}
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        for number in _cpu_list(folder / "cpulist"):
            node_of[number] = int(folder.name.removeprefix("node"))
    return {number: node_of.get(number, 0) for number in usable}


def numa_node_of_pci(address: str, root: Path = _ROOT) -> int | None:
    """`address` like 0000:3b:00.0; None where the kernel knows no node (it says -1 on machines with one)."""
    try:
        node = int((root / "sys/bus/pci/devices" / address.lower() / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _cpu_list(path: Path) -> list[int]:
    """The kernel's "0-3,8"."""
    try:
        parts = [part for part in path.read_text().strip().split(",") if part]
    except OSError:
        return []
    found: list[int] = []
    for part in parts:
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found
