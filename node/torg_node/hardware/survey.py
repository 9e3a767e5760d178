"""This machine for its owner's eyes, and whether its parts agree: the GPUs' library against the kernel's own view. Read only.

"not established" means that nothing on this host tells it; nothing is guessed. `root` is / but in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torg_node.hardware.gpus import GpuFacts
from torg_node.hardware.kfd import kfd_doubts
from torg_node.hardware.rapl import Rapl
from torg_protocol.offers import GpuInfo, Inventory

UNKNOWN = "not established"
_NVIDIA_VENDOR, _AMD_VENDOR = "0x10de", "0x1002"
_ROOT = Path("/")


def describe(inventory: Inventory, units: Sequence[GpuFacts], root: Path = _ROOT) -> dict[str, str]:
    """One line per part."""
    lines = {
        "cpu energy": "counted (RAPL)" if Rapl(root).is_there else "not counted: no RAPL here, or not for this user",
        "cpu": f"{inventory.cpu_model or UNKNOWN}, {inventory.cpu_millis // 1000} cores for this agent",
        "memory": _gib(inventory.memory_bytes),
        "disk for leases": _gib(inventory.disk_bytes),
    }
    for name, speed in _links(root).items():
        lines[f"network {name}"] = speed
    for unit in units:
        gpu = unit.info
        pcie = (
            f"PCIe {unit.pcie_generation} x{unit.pcie_lanes}" if unit.pcie_generation and unit.pcie_lanes else UNKNOWN
        )
        ecc = UNKNOWN if unit.ecc_on is None else "on" if unit.ecc_on else "off"
        lines[f"gpu {gpu.uuid}"] = (
            f"{gpu.model}, {_gib(gpu.vram_bytes)}, {_generation(gpu)},"
            f" driver {gpu.driver}, at {unit.pci_address or UNKNOWN}, {pcie}, ECC {ecc}"
            + (f", slice of {gpu.mig_parent}" if gpu.mig_parent else "")
        )
    if not units:
        lines["gpu"] = "none that a driver tells of"
    known = {unit.pci_address for unit in units}
    for address in _amd(root):
        if address not in known:
            why = "one node offers GPUs of one vendor" if units else "pip install 'torg[amd]', and ROCm's libamd_smi.so"
            lines[f"gpu {address}"] = f"AMD, seen by the kernel and not offered: {why}"
    return lines


def disagreements(units: Sequence[GpuFacts], root: Path = _ROOT) -> list[str]:
    """What a GPU's library says and the kernel does not confirm. A library that makes GPUs up does not make up sysfs."""
    found: list[str] = []
    seen = _pci_vendors(root)
    for unit in units:
        vendor, maker = (_NVIDIA_VENDOR, "NVIDIA") if unit.info.gfx_target is None else (_AMD_VENDOR, "AMD")
        if unit.pci_address is None:
            found.append(f"{unit.info.uuid}: its place on the PCI bus is {UNKNOWN}")
        elif seen.get(unit.pci_address) != vendor:
            found.append(f"{unit.info.uuid}: the kernel knows no {maker} device at {unit.pci_address}")
    of_amd = [unit for unit in units if unit.info.gfx_target is not None]
    found += [doubt for unit in of_amd for doubt in kfd_doubts(unit, root)]
    version = _text(root / "proc/driver/nvidia/version")
    kernel = version.splitlines()[0] if version else "none"
    drivers = sorted({unit.info.driver or "" for unit in units if unit not in of_amd})
    return found + [f"NVML says driver {one}, the kernel says {kernel}" for one in drivers if f" {one} " not in version]


def _generation(gpu: GpuInfo) -> str:
    return gpu.gfx_target or f"compute capability {gpu.compute_capability or UNKNOWN}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def _pci_vendors(root: Path) -> dict[str, str]:
    folders = (root / "sys/bus/pci/devices").glob("*")
    return {folder.name: _text(folder / "vendor").strip() for folder in folders}


def _amd(root: Path) -> list[str]:
    """Addresses of AMD's display and processing devices (PCI class 03 and 12)."""
    folders = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [
        folder.name
        for folder in folders
        if _text(folder / "vendor").strip() == _AMD_VENDOR and _text(folder / "class")[:4] in {"0x03", "0x12"}
    ]


def _links(root: Path) -> dict[str, str]:
    """Speed of the network devices that are hardware."""
    found = {}
    for folder in sorted((root / "sys/class/net").glob("*")):
        if (folder / "device").exists():
            speed = _text(folder / "speed").strip()
            found[folder.name] = f"{speed} Mbit/s" if speed.isdigit() else f"speed {UNKNOWN}"
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
