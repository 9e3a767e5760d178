"""What this machine has, as far as it can be established. Without a GPU it is honestly of class "cpu"."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torg_node.hardware.nvidia import find_nvidia_gpus
from torg_protocol.offers import Inventory


def take_inventory(disk_at: Path, offered_disk_bytes: int) -> Inventory:
    """`disk_at`: where leases keep their files. Cores are those that this process may use."""
    gpus = find_nvidia_gpus()
    free = shutil.disk_usage(disk_at).free
    return Inventory(
        source="nvml" if gpus else "cpu",
        gpu_class=gpus[0].model if gpus else "cpu",
        gpus=gpus,
        cpu_model=_cpu_model(),
        cpu_millis=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=_memory_bytes(),
        disk_bytes=max(1, min(free * 9 // 10, offered_disk_bytes)),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo names no MemTotal")
