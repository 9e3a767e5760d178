"""What the kernel's own compute driver (amdkfd) says of AMD GPUs: /sys/class/kfd, against which their library is held. Read only."""

from __future__ import annotations

from pathlib import Path

from torg_node.hardware.gpus import GpuFacts

_LOCAL_MEMORY = {"1", "2"}  # heap types of a memory bank: frame buffer, visible to the host or not
_ROOT = Path("/")


def kfd_doubts(unit: GpuFacts, root: Path = _ROOT) -> list[str]:
    """Where the kernel has another architecture or less memory at this place, or no compute device at all."""
    render = next((path.rpartition("renderD")[2] for path in unit.device_nodes if "renderD" in path), "")
    nodes = sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*"))
    node = next(
        (node for node in nodes if render and _properties(node / "properties").get("drm_render_minor") == render), None
    )
    uuid = unit.info.uuid
    if node is None:
        return [f"{uuid}: the kernel knows no compute device behind renderD{render or '?'}"]
    doubts = []
    target = gfx_name(int(_properties(node / "properties").get("gfx_target_version", "0")))
    if target != unit.info.gfx_target:
        doubts.append(f"{uuid}: its library says {unit.info.gfx_target}, the kernel says {target}")
    banks = [_properties(bank / "properties") for bank in sorted((node / "mem_banks").glob("[0-9]*"))]
    local_bytes = sum(int(bank.get("size_in_bytes", "0")) for bank in banks if bank.get("heap_type") in _LOCAL_MEMORY)
    if local_bytes < unit.info.vram_bytes * 95 // 100:  # the library counts what firmware keeps
        doubts.append(f"{uuid}: its library says {unit.info.vram_bytes} bytes of memory, the kernel has {local_bytes}")
    return doubts


def gfx_name(version: int) -> str:
    """The kernel's 90010 is gfx90a: major, minor in two digits, stepping in two, the last two written as one hex digit each."""
    return f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"


def _properties(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}
