"""What a vendor's library says of GPUs, in one form for all vendors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torg_protocol.offers import GpuInfo


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """`pci_address` as sysfs writes it (0000:3b:00.0); of a MIG slice it is its GPU's. `device_nodes`: what a container must be given for it,
    where the engine has no runtime that knows (AMD)."""

    info: GpuInfo
    pci_address: str | None
    pcie_generation: int | None
    pcie_lanes: int | None
    ecc_on: bool | None
    device_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One look at a physical GPU. `is_lost`: the driver cannot reach it any more. `slowed_by_heat`, `slowed_by_power`: whether the card holds
    its own clocks down now because it is too hot, or short of power; None: it does not tell."""

    uuid: str
    is_lost: bool = False
    temperature_c: int | None = None
    slowed_by_heat: bool | None = None
    slowed_by_power: bool | None = None
    uncorrected_ecc_errors: int | None = None
    row_remap_failed: bool | None = None


class GpuLibrary(Protocol):
    """All calls block; one call at a time."""

    def units(self) -> tuple[GpuFacts, ...]:
        """What may be leased, each by itself."""
        ...

    def read(self, expected: tuple[str, ...]) -> tuple[GpuReading, ...]:
        """`expected`: UUIDs of physical GPUs that were there at start; one that is not listed any more is lost."""
        ...

    def power_limit_watts(self) -> int | None:
        """Of all GPUs together; None when one does not tell."""
        ...

    def energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        """What each of these GPUs consumed since its driver was loaded; those that do not count are left out."""
        ...

    def processes(self, uuids: Sequence[str]) -> set[int]:
        """Ids of the processes on these physical GPUs, as the host numbers them."""
        ...

    def close(self) -> None: ...
