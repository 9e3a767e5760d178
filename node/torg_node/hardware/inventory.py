"""What this machine has, as far as it can be established. Without a GPU it is honestly of class "cpu"."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torg_node.allocation import Capacity, Cpu
from torg_node.hardware.gpus import GpuFacts
from torg_node.hardware.topology import cpus_by_numa_node, numa_node_of_pci
from torg_protocol.offers import GpuInfo, Inventory

SIMULATED = "SIMULATED"  # the name that a pretended GPU begins with; a real one never does


def take_inventory(disk_at: Path, offered_disk_bytes: int, units: Sequence[GpuFacts]) -> Inventory:
    """`disk_at`: where leases keep their files. Cores are those that this process may use."""
    gpus = tuple(unit.info for unit in units)
    free = shutil.disk_usage(disk_at).free
    return Inventory(
        source=_source(gpus),
        gpu_class=gpus[0].model if gpus else "cpu",
        gpus=gpus,
        cpu_model=_cpu_model(),
        cpu_millis=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=_memory_bytes(),
        disk_bytes=max(1, min(free * 9 // 10, offered_disk_bytes)),
    )


def _source(gpus: Sequence[GpuInfo]) -> str:
    if not gpus:
        return "cpu"
    if any(gpu.model.startswith(SIMULATED) for gpu in gpus):
        return "simulated"
    return "amdsmi" if any(gpu.gfx_target is not None for gpu in gpus) else "nvml"


def capacity_of(inventory: Inventory, units: Sequence[GpuFacts], slots: int, *, gpu_slices: int) -> Capacity:
    """What may be handed out to leases here."""
    near = {unit.info.uuid: numa_node_of_pci(unit.pci_address) for unit in units if unit.pci_address is not None}
    return Capacity(
        gpus=inventory.gpus,
        cpus=tuple(Cpu(number, node) for number, node in cpus_by_numa_node().items()),
        cpu_millis=inventory.cpu_millis,
        memory_bytes=inventory.memory_bytes,
        disk_bytes=inventory.disk_bytes,
        slots=slots,
        gpu_slices=gpu_slices,
        numa_node_of={uuid: node for uuid, node in near.items() if node is not None},
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
