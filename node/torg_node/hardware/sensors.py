"""What this host tells about itself while the agent lives: one look at the GPUs' library, at the kernel's log and at the processors' energy counters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from torg_node.hardware.gpus import GpuFacts, GpuLibrary, GpuReading
from torg_node.hardware.health import KernelLog, broken_xids, why_unfit
from torg_node.hardware.heat import HeatRule, HeatWatch, Hot
from torg_node.hardware.rapl import CpuEnergy, Rapl

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fitness:
    """What one look changes, of physical GPUs. `broken` and `hot`: the reason by UUID; what is `back` was hot and is not any more."""

    broken: Mapping[str, str] = field(default_factory=dict)
    hot: Mapping[str, str] = field(default_factory=dict)
    back: frozenset[str] = frozenset()


class Sensors:
    """Of the GPUs that were there at start. `look` blocks: call it from a thread, one call at a time."""

    def __init__(
        self,
        library: GpuLibrary | None,
        units: Sequence[GpuFacts],
        kernel_log: KernelLog,
        rapl: Rapl | None = None,
        heat: HeatRule | None = None,
        steady_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._library, self._kernel_log, self._rapl = library, kernel_log, rapl
        self._heat, self._steady_s, self._wall_s = HeatWatch(heat or HeatRule()), steady_s, wall_s
        self._at_address = {unit.pci_address: _physical(unit) for unit in units if unit.pci_address is not None}
        self._uuids = tuple(dict.fromkeys(_physical(unit) for unit in units))
        self._slowed: set[str] = set()

    def look(self, resting: Collection[str] = ()) -> Fitness:
        """`resting`: the GPUs that get no work by heat now."""
        self.cpu_energy()
        if self._library is None or not self._uuids:
            return Fitness()
        readings = self._library.read(self._uuids)
        broken = {reading.uuid: reason for reading in readings if (reason := why_unfit(reading)) is not None}
        for address, reason in broken_xids(self._kernel_log.news()).items():
            if address in self._at_address:
                broken[self._at_address[address]] = reason  # more telling than what follows from it
        for reading in readings:
            self._note_slowdown(reading)
        now_s = self._steady_s()
        change = self._heat.look(readings, resting, now_s)
        later_s = self._wall_s() - now_s
        hot = {uuid: _in_words(found, found.since_s + later_s) for uuid, found in change.rest.items()}
        return Fitness(broken, hot, change.back)

    def cpu_energy(self) -> CpuEnergy | None:
        """Of this host's processors as a whole; None where that is not counted."""
        return None if self._rapl is None else self._rapl.look()

    def gpu_energy_mj(self, uuids: Sequence[str]) -> dict[str, int]:
        """See `GpuLibrary.energy_mj`. Blocks."""
        return {} if self._library is None else self._library.energy_mj(uuids)

    @property
    def gpu_pids(self) -> Callable[[], set[int]] | None:
        """The processes on these GPUs; None where nobody can tell. Blocks like `look`."""
        library, own = self._library, self._uuids
        return (lambda: library.processes(own)) if library is not None and own else None

    def close(self) -> None:
        self._kernel_log.close()
        if self._library is not None:
            self._library.close()

    def _note_slowdown(self, reading: GpuReading) -> None:
        """Says it when it begins and when it ends, not at every look."""
        cause = "by heat" if reading.slowed_by_heat else "for want of power" if reading.slowed_by_power else None
        if cause and reading.uuid not in self._slowed:
            self._slowed.add(reading.uuid)
            warmth = "temperature not told" if reading.temperature_c is None else f"{reading.temperature_c} C"
            log.warning("%s slows itself down %s (%s): leases on it take longer", reading.uuid, cause, warmth)
        elif not cause and reading.uuid in self._slowed:
            self._slowed.discard(reading.uuid)
            log.info("%s runs at full speed again", reading.uuid)


def _in_words(hot: Hot, since_s: float) -> str:
    since = datetime.fromtimestamp(since_s, UTC)
    warmth = "" if hot.temperature_c is None else f", {hot.temperature_c} C"
    return f"slows itself down by heat since {since:%Y-%m-%d %H:%M} UTC{warmth}"


def _physical(unit: GpuFacts) -> str:
    return unit.info.mig_parent or unit.info.uuid
