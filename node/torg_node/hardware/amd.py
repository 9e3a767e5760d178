"""AMD GPUs by amdsmi (ROCm's library, with PyPI's bindings): what they are, and how they are now. Never run on hardware: tests have a SIMULATED library.

Looked for only where the kernel has a compute device (/dev/kfd). A figure that a card does not give is None, never a guess. A
card whose render node is not known cannot be given to a container by itself, so it is not a unit.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torg_node.hardware.gpus import GpuFacts, GpuReading
from torg_protocol.offers import GpuInfo

log = logging.getLogger(__name__)
T = TypeVar("T")
KFD = Path("/dev/kfd")
_UNKNOWN = (None, "N/A")
_MICROJOULES_PER_MILLIJOULE = 1000
_MICROWATTS_PER_WATT = 1_000_000
_HEAT_VIOLATIONS = ("active_prochot_thrm", "active_socket_thrm", "active_vr_thrm", "active_hbm_thrm")
_POWER_VIOLATION = "active_ppt_pwr"
# The driver's throttler bits (amdgpu_smu.h), the same for all cards: power and currents below 32, temperatures and hot regulators from 32 to 45.
_POWER_STATUS, _HEAT_STATUS = (1 << 32) - 1, ((1 << 14) - 1) << 32
_NOT_TOLD_64 = (1 << 64) - 1
_TRANSFERS_OF_GENERATION = {2_500: 1, 5_000: 2, 8_000: 3, 16_000: 4, 32_000: 5, 64_000: 6}  # by MT/s per lane


class Amd:
    """All calls block for milliseconds, so call it from a thread. The interface of `Nvidia`."""

    def __init__(self, amdsmi: Any) -> None:
        self._amdsmi = amdsmi

    @classmethod
    def open(cls, kfd: Path = KFD) -> Amd | None:
        """None where there is no AMD GPU to speak of, or nobody who speaks of it: then the log says what is missing."""
        if not kfd.exists():
            return None
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):  # its bindings print that they do not find the library
                import amdsmi

                amdsmi.amdsmi_init()
        except ImportError:
            log.warning("an AMD GPU is here, and its bindings are not: pip install 'torg[amd]'")
            return None
        except (OSError, KeyError, AttributeError) as error:  # no libamd_smi.so, or one of another release
            log.warning("an AMD GPU is here, and ROCm's libamd_smi.so is not one that can be used: %s", error)
            return None
        except amdsmi.AmdSmiException as error:
            log.warning("an AMD GPU is here, and its library does not start: %s", error)
            return None
        return cls(amdsmi)

    def close(self) -> None:
        self._amdsmi.amdsmi_shut_down()

    def units(self) -> tuple[GpuFacts, ...]:
        return tuple(unit for handle in self._handles() if (unit := self._unit_of(handle)) is not None)

    def read(self, expected: tuple[str, ...]) -> tuple[GpuReading, ...]:
        """`expected`: UUIDs that were there at start; one that is not listed any more is lost."""
        readings = {reading.uuid: reading for reading in map(self._reading, self._handles()) if reading is not None}
        return tuple(readings.get(uuid, GpuReading(uuid, is_lost=True)) for uuid in expected)

    def power_limit_watts(self) -> int | None:
        """Of all GPUs together; None when one does not tell."""
        caps = [self._optional(self._amdsmi.amdsmi_get_power_cap_info, handle) for handle in self._handles()]
        known = [int(cap["power_cap"]) for cap in caps if cap is not None]
        return sum(known) // _MICROWATTS_PER_WATT if known and len(known) == len(caps) else None

    def energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        """What each of these GPUs consumed since its driver was loaded, in millijoules; those that do not count are left out."""
        found = {}
        for handle in self._handles():
            uuid = self._optional(self._amdsmi.amdsmi_get_gpu_device_uuid, handle)
            count = self._optional(self._amdsmi.amdsmi_get_energy_count, handle)
            if uuid is not None and count is not None and uuid in uuids:
                used_uj = count["energy_accumulator"] * count["counter_resolution"]
                found[uuid] = int(used_uj / _MICROJOULES_PER_MILLIJOULE)
        return found

    def processes(self, uuids: Sequence[str]) -> set[int]:
        """Ids of the processes that compute on these GPUs, as the host numbers them."""
        amdsmi = self._amdsmi
        own = [one for one in self._handles() if self._optional(amdsmi.amdsmi_get_gpu_device_uuid, one) in uuids]
        lists = (self._optional(amdsmi.amdsmi_get_gpu_process_list, handle) for handle in own)
        return {int(process["pid"]) for found in lists for process in found or ()}

    # --- parts ------------------------------------------------------------------------------------------------------

    def _handles(self) -> Iterator[Any]:
        yield from self._optional(self._amdsmi.amdsmi_get_processor_handles) or ()

    def _unit_of(self, handle: Any) -> GpuFacts | None:
        amdsmi = self._amdsmi
        uuid = self._optional(amdsmi.amdsmi_get_gpu_device_uuid, handle)
        vram_bytes = self._optional(amdsmi.amdsmi_get_gpu_memory_total, handle, amdsmi.AmdSmiMemoryType.VRAM)
        places = self._optional(amdsmi.amdsmi_get_gpu_enumeration_info, handle)
        if not uuid or not vram_bytes or places is None or places["drm_render"] in _UNKNOWN:
            log.warning("an AMD GPU does not tell its UUID, memory or render node, and is not offered")
            return None
        asic = self._optional(amdsmi.amdsmi_get_gpu_asic_info, handle) or {}
        driver = self._optional(amdsmi.amdsmi_get_gpu_driver_info, handle) or {}
        pcie = (self._optional(amdsmi.amdsmi_get_pcie_info, handle) or {}).get("pcie_static", {})
        info = GpuInfo(
            uuid=uuid,
            model=_known(asic.get("market_name")) or "AMD GPU",
            vram_bytes=int(vram_bytes),
            driver=_known(driver.get("driver_version")),
            gfx_target=_known(asic.get("target_graphics_version")),
        )
        return GpuFacts(
            info=info,
            pci_address=self._optional(amdsmi.amdsmi_get_gpu_device_bdf, handle),
            pcie_generation=_TRANSFERS_OF_GENERATION.get(pcie.get("max_pcie_speed", 0)),
            pcie_lanes=_known(pcie.get("max_pcie_width")) or None,
            ecc_on=None,
            device_nodes=(str(KFD), f"/dev/dri/renderD{places['drm_render']}"),
        )

    def _reading(self, handle: Any) -> GpuReading | None:
        amdsmi = self._amdsmi
        uuid = self._optional(amdsmi.amdsmi_get_gpu_device_uuid, handle)
        if uuid is None:
            return None
        edge, now = amdsmi.AmdSmiTemperatureType.EDGE, amdsmi.AmdSmiTemperatureMetric.CURRENT
        errors = self._optional(amdsmi.amdsmi_get_gpu_total_ecc_count, handle)
        by_heat, by_power = self._slowed(handle)
        return GpuReading(
            uuid,
            temperature_c=self._optional(amdsmi.amdsmi_get_temp_metric, handle, edge, now),
            slowed_by_heat=by_heat,
            slowed_by_power=by_power,
            uncorrected_ecc_errors=None if errors is None else int(errors["uncorrectable_count"]),
        )

    def _slowed(self, handle: Any) -> tuple[bool | None, bool | None]:
        """By heat, by power: from the violations that accelerators count, else from the throttle status of the card's metrics."""
        found = self._optional(self._amdsmi.amdsmi_get_violation_status, handle) or {}
        heat = [told for name in _HEAT_VIOLATIONS if isinstance(told := found.get(name), bool)]
        power = found.get(_POWER_VIOLATION)
        if heat:
            return any(heat), power if isinstance(power, bool) else None
        status = self._throttle_status(handle)
        return (None, None) if status is None else (bool(status & _HEAT_STATUS), bool(status & _POWER_STATUS))

    def _throttle_status(self, handle: Any) -> int | None:
        """The bits themselves, which the bindings' own function makes one truth value of."""
        wrapper = self._amdsmi.amdsmi_wrapper
        metrics = wrapper.amdsmi_gpu_metrics_t()
        if wrapper.amdsmi_get_gpu_metrics_info(handle, ctypes.byref(metrics)) != 0:
            return None
        status = int(metrics.indep_throttle_status)
        return None if status == _NOT_TOLD_64 else status

    def _optional(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """None for what this card or driver does not tell."""
        try:
            return read(*arguments)
        except self._amdsmi.AmdSmiException:
            return None


def _known(value: Any) -> Any:
    return None if value in _UNKNOWN else value
