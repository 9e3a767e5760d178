"""What this host tells about itself while the agent lives: one look at the GPUs' library, at the kernel's log and at the processors' energy counters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torg_node.hardware.gpus import GpuFacts, GpuLibrary, GpuReading
from torg_node.hardware.health import KernelLog, broken_xids, is_throttled, why_unfit
from torg_node.hardware.rapl import CpuEnergy, Rapl

log = logging.getLogger(__name__)


class Sensors:
    """Of the GPUs that were there at start. `look` blocks: call it from a thread, one call at a time."""

    def __init__(
        self, library: GpuLibrary | None, units: Sequence[GpuFacts], kernel_log: KernelLog, rapl: Rapl | None = None
    ) -> None:
        self._library, self._kernel_log, self._rapl = library, kernel_log, rapl
        self._at_address = {unit.pci_address: _physical(unit) for unit in units if unit.pci_address is not None}
        self._uuids = tuple(dict.fromkeys(_physical(unit) for unit in units))
        self._throttled: set[str] = set()

    def look(self) -> dict[str, str]:
        """Reason by UUID, for physical GPUs that should take no more work."""
        self.cpu_energy()
        if self._library is None or not self._uuids:
            return {}
        unfit: dict[str, str] = {}
        for reading in self._library.read(self._uuids):
            if (reason := why_unfit(reading)) is not None:
                unfit[reading.uuid] = reason
            self._note_throttling(reading)
        for address, reason in broken_xids(self._kernel_log.news()).items():
            if address in self._at_address:
                unfit[self._at_address[address]] = reason  # more telling than what follows from it
        return unfit

    def cpu_energy(self) -> CpuEnergy | None:
        """Of this host's processors as a whole; None where that is not counted."""
        return None if self._rapl is None else self._rapl.look()

    def gpu_energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        """See `GpuLibrary.energy_mj`. Blocks."""
        return {} if self._library is None else self._library.energy_mj(uuids)

    @property
    def gpu_pids(self) -> Callable[[], set[int]] | None:
        """The processes on these GPUs; None where nobody can tell. Blocks like `look`."""
        return self._library.processes if self._library is not None and self._uuids else None

    def close(self) -> None:
        self._kernel_log.close()
        if self._library is not None:
            self._library.close()

    def _note_throttling(self, reading: GpuReading) -> None:
        """Says it when it begins and when it ends, not at every look."""
        if is_throttled(reading) and reading.uuid not in self._throttled:
            self._throttled.add(reading.uuid)
            log.warning("%s slows itself down (%s C): leases on it take longer", reading.uuid, reading.temperature_c)
        elif not is_throttled(reading) and reading.uuid in self._throttled:
            self._throttled.discard(reading.uuid)
            log.info("%s runs at full speed again", reading.uuid)


def _physical(unit: GpuFacts) -> str:
    return unit.info.mig_parent or unit.info.uuid
