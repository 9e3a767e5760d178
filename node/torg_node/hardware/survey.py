"""This machine for its owner's eyes, and whether its parts agree: the GPUs' library against the kernel's own view. Read only.

"not established" means that nothing on this host tells it; nothing is guessed. `root` is / but in tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from torg_node.hardware.detect import unknown
from torg_node.hardware.gpus import GpuFacts
from torg_node.hardware.kfd import kfd_doubts
from torg_node.hardware.rapl import Rapl
from torg_protocol.offers import GpuInfo, Inventory

UNKNOWN = "not established"
_VENDORS = {"NVIDIA": "0x10de", "AMD": "0x1002"}
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
    makers = {_maker(unit) for unit in units}
    for address, maker in _gpus_of_kernel(root):
        if address not in known:
            lines[f"gpu {address}"] = f"{maker}, seen by the kernel and not offered: {_why_not_offered(maker, makers)}"
    return lines


def _why_not_offered(maker: str, offered: Collection[str]) -> str:
    """`offered`: the vendors of the GPUs that this node lends."""
    if maker in offered:
        return "no driver tells of it, or gpus in config.toml names others"
    if offered:
        name = maker.lower()
        return (
            "an offer has one class and one price, so a node offers GPUs of one vendor; a second node offers these: torg-node init"
            f" --gpus {name} --data DIR, both with one reservations_path"
        )
    return "no driver tells of it" if maker == "NVIDIA" else "pip install 'torg[amd]', and ROCm's libamd_smi.so"


def not_here(wanted: Sequence[str], told: Sequence[GpuFacts], root: Path = _ROOT) -> str | None:
    """For an owner who names GPUs to lend: what was looked for, and the way out. `told`: all that drivers tell of. None: each name is one of them."""
    lacking = unknown(told, wanted)
    if not lacking:
        return None
    seen = [f"{maker} at {address}" for address, maker in _gpus_of_kernel(root)]
    if told:
        way = "name one of those that are there: a vendor, a model or a UUID"
    elif seen:
        way = "install its driver: nvidia-smi must list it; for AMD's also pip install 'torg[amd]' and ROCm's libamd_smi.so"
    else:
        way = "is the card in this machine? a virtual machine or a container must be given it"
    return "\n".join(
        [
            f"no GPU here is called {', '.join(lacking)}: looked for NVIDIA's by NVML (libnvidia-ml.so.1) and for AMD's by /dev/kfd and amdsmi",
            f"  drivers tell of  {', '.join(f'{unit.info.model} ({unit.info.uuid})' for unit in told) or 'none'}",
            f"  the kernel sees  {', '.join(seen) or 'none'}",
            f"  {way}; then torg-node doctor. Until then it is not offered",
        ]
    )


def disagreements(units: Sequence[GpuFacts], root: Path = _ROOT, *, wanted: Sequence[str] = ()) -> list[str]:
    """What a GPU's library says and the kernel does not confirm, and what the owner wants to lend and no library tells of. A library that makes
    GPUs up does not make up sysfs."""
    found = [
        f"gpus in config.toml names {name}, and no driver tells of such a GPU here" for name in unknown(units, wanted)
    ]
    seen = _pci_vendors(root)
    for unit in units:
        maker = _maker(unit)
        vendor = _VENDORS[maker]
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


def _maker(unit: GpuFacts) -> str:
    return "NVIDIA" if unit.info.gfx_target is None else "AMD"


def _generation(gpu: GpuInfo) -> str:
    return gpu.gfx_target or f"compute capability {gpu.compute_capability or UNKNOWN}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def _pci_vendors(root: Path) -> dict[str, str]:
    folders = (root / "sys/bus/pci/devices").glob("*")
    return {folder.name: _text(folder / "vendor").strip() for folder in folders}


def _gpus_of_kernel(root: Path) -> list[tuple[str, str]]:
    """Address and maker of NVIDIA's and AMD's display and processing devices (PCI class 03 and 12)."""
    makers = {vendor: maker for maker, vendor in _VENDORS.items()}
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        maker = makers.get(_text(folder / "vendor").strip())
        if maker is not None and _text(folder / "class")[:4] in {"0x03", "0x12"}:
            found.append((folder.name, maker))
    return found


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
