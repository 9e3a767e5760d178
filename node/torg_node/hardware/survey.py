"""This machine for its owner's eyes, and whether its parts agree: NVML against the kernel's own view. Read only.

"not established" means that nothing on this host tells it; nothing is guessed. `root` is / but in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torg_node.hardware.nvidia import GpuFacts
from torg_node.hardware.rapl import Rapl
from torg_protocol.offers import Inventory

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
            f"{gpu.model}, {_gib(gpu.vram_bytes)}, compute capability {gpu.compute_capability or UNKNOWN},"
            f" driver {gpu.driver}, at {unit.pci_address or UNKNOWN}, {pcie}, ECC {ecc}"
            + (f", slice of {gpu.mig_parent}" if gpu.mig_parent else "")
        )
    if not units:
        lines["gpu"] = "none that a driver tells of"
    for address in _amd(root):
        lines[f"gpu {address}"] = "AMD, seen by the kernel; no executor here passes it on yet, so it is not offered"
    return lines


def disagreements(units: Sequence[GpuFacts], root: Path = _ROOT) -> list[str]:
    """What NVML says and the kernel does not confirm. A library that makes GPUs up does not make up sysfs."""
    found: list[str] = []
    seen = _pci_vendors(root)
    for unit in units:
        if unit.pci_address is None:
            found.append(f"{unit.info.uuid}: its place on the PCI bus is {UNKNOWN}")
        elif seen.get(unit.pci_address) != _NVIDIA_VENDOR:
            found.append(f"{unit.info.uuid}: the kernel knows no NVIDIA device at {unit.pci_address}")
    version = _text(root / "proc/driver/nvidia/version")
    kernel = version.splitlines()[0] if version else "none"
    drivers = sorted({unit.info.driver or "" for unit in units})
    return found + [f"NVML says driver {one}, the kernel says {kernel}" for one in drivers if f" {one} " not in version]


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
