"""NVIDIA GPUs by NVML: what they are, and how they are now.

No library or no driver means no GPU; a figure that a card does not give is None, never a guess. A MIG slice is a unit of its own, and a
GPU that is cut into slices is none. NVML stays open while the agent lives: opening it anew may wake a sleeping card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torg_node.hardware.gpus import GpuFacts, GpuReading
from torg_protocol.offers import GpuInfo

T = TypeVar("T")
_TEMPERATURE_GPU = 0
_UNCORRECTED, _SINCE_BOOT = 1, 0
# NVML's clocks event reasons. 0x08 (hardware slowdown, whatever for) comes with either, and alone says not which: older drivers set nothing else.
_SLOWED_BY_HEAT = 0x20 | 0x40  # software, hardware thermal slowdown
_SLOWED_BY_POWER = 0x80  # power brake; the power cap of its owner (0x04) is none


class Nvidia:
    """All calls block for milliseconds; a lost card may block for longer, so call it from a thread."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    @classmethod
    def open(cls) -> Nvidia | None:
        """None where there is no NVIDIA GPU to speak of."""
        import pynvml

        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_NoPermission):
            return None
        return cls(pynvml)

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def units(self) -> tuple[GpuFacts, ...]:
        """Whole GPUs, and the slices of those that are cut. GPUs that the driver has lost are not among them."""
        driver = _text(self._nvml.nvmlSystemGetDriverVersion())
        return tuple(unit for handle in self._handles() for unit in self._units_of(handle, driver))

    def read(self, expected: tuple[str, ...]) -> tuple[GpuReading, ...]:
        """`expected`: UUIDs of physical GPUs that were there at start; one that is not listed any more is lost."""
        readings = {reading.uuid: reading for reading in map(self._reading, self._handles()) if reading is not None}
        return tuple(readings.get(uuid, GpuReading(uuid, is_lost=True)) for uuid in expected)

    def power_limit_watts(self) -> int | None:
        """Of all GPUs together; None when one does not tell."""
        limits = [self._optional(self._nvml.nvmlDeviceGetEnforcedPowerLimit, handle) for handle in self._handles()]
        known = [int(limit) for limit in limits if limit is not None]
        return sum(known) // 1000 if known and len(known) == len(limits) else None

    def energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        """What each of these GPUs consumed since its driver was loaded, in millijoules; those that do not count are left out."""
        found = {}
        for handle in self._handles():
            uuid = self._optional(self._nvml.nvmlDeviceGetUUID, handle)
            energy = self._optional(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            if uuid is not None and energy is not None and _text(uuid) in uuids:
                found[_text(uuid)] = int(energy)
        return found

    def processes(self, uuids: Sequence[str]) -> set[int]:
        """Ids of the processes that compute or draw on these physical GPUs, as the host numbers them."""
        nvml, found = self._nvml, set()
        for handle in self._handles():
            uuid = self._optional(nvml.nvmlDeviceGetUUID, handle)
            if uuid is None or _text(uuid) not in uuids:
                continue
            for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
                found |= {int(process.pid) for process in self._optional(ask, handle) or ()}
        return found

    # --- parts ------------------------------------------------------------------------------------------------------

    def _handles(self) -> Iterator[Any]:
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._optional(self._nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                yield handle

    def _units_of(self, handle: Any, driver: str) -> Iterator[GpuFacts]:
        nvml = self._nvml
        uuid = self._optional(nvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            return
        capability = self._optional(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        version = None if capability is None else f"{capability[0]}.{capability[1]}"
        mig = self._optional(nvml.nvmlDeviceGetMigMode, handle)
        parts = list(self._slices(handle)) if mig is not None and mig[0] else [handle]
        for part in parts:
            info = GpuInfo(
                uuid=_text(nvml.nvmlDeviceGetUUID(part)),
                model=_text(nvml.nvmlDeviceGetName(part)),
                vram_bytes=int(nvml.nvmlDeviceGetMemoryInfo(part).total),
                compute_capability=version,
                driver=driver,
                mig_parent=None if part is handle else _text(uuid),
            )
            yield self._facts(info, handle)

    def _facts(self, info: GpuInfo, handle: Any) -> GpuFacts:
        nvml = self._nvml
        pci = self._optional(nvml.nvmlDeviceGetPciInfo, handle)
        ecc = self._optional(nvml.nvmlDeviceGetEccMode, handle)
        return GpuFacts(
            info=info,
            pci_address=None if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0",
            pcie_generation=self._optional(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_lanes=self._optional(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            ecc_on=None if ecc is None else bool(ecc[0]),
        )

    def _slices(self, handle: Any) -> Iterator[Any]:
        for index in range(self._optional(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._optional(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if part is not None:
                yield part

    def _reading(self, handle: Any) -> GpuReading | None:
        nvml = self._nvml
        raw = self._optional(nvml.nvmlDeviceGetUUID, handle)
        if raw is None:
            return None
        uuid = _text(raw)
        try:
            temperature = self._unless_lost(nvml.nvmlDeviceGetTemperature, handle, _TEMPERATURE_GPU)
            remapped = self._unless_lost(nvml.nvmlDeviceGetRemappedRows, handle)
            reasons = self._unless_lost(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
            return GpuReading(
                uuid,
                temperature_c=temperature,
                slowed_by_heat=None if reasons is None else bool(reasons & _SLOWED_BY_HEAT),
                slowed_by_power=None if reasons is None else bool(reasons & _SLOWED_BY_POWER),
                uncorrected_ecc_errors=self._unless_lost(
                    nvml.nvmlDeviceGetTotalEccErrors, handle, _UNCORRECTED, _SINCE_BOOT
                ),
                row_remap_failed=None if remapped is None else bool(remapped[3]),
            )
        except nvml.NVMLError_GpuIsLost:
            return GpuReading(uuid, is_lost=True)

    def _optional(self, read: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return self._unless_lost(read, *arguments)
        except self._nvml.NVMLError_GpuIsLost:
            return None

    def _unless_lost(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """None for what this card or driver does not tell. Raises NVMLError_GpuIsLost."""
        try:
            return read(*arguments)
        except self._nvml.NVMLError_GpuIsLost:
            raise
        except self._nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
