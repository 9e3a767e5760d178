"""Packing: how much of the fleet's free GPU capacity a placement would make useless for the demand that is to be expected.

The *usable* capacity of a node is the free GPU-milli that the kinds of demand in the mix could use there, weighted by how
often they are asked for. For one kind it is a blend of two views:

- *reach*: if one job of the kind fits, every GPU with room for it counts whole (the measure of fragmentation gradient
  descent, Weng et al., USENIX ATC 2023);
- *fill*: only as many GPUs count as copies of the job fit by GPU, CPU and memory. It sees GPUs that will be stranded when the
  CPU is gone, long before the CPU is gone.

`consumption` is the usable capacity lost per GPU-milli given: 1 is neutral, 0 uses only what nobody else could have used, and
8 spoils seven GPUs for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torg_marketplace.matching.fleet import Fleet, Rows
from torg_marketplace.matching.kernel import Remembered
from torg_marketplace.matching.mix import DemandMix
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand

Floats = npt.NDArray[np.float64]

REACH_SHARE = 0.6  # of the blend
SHAPES = 24  # kinds of demand that are compared; more change nothing measurable


@dataclass(frozen=True, slots=True)
class Outlook:
    """The expected demand for GPUs as tables. Column k is a shape; row f of a table belongs to a GPU with f milli free."""

    gpus: Floats
    size: Floats  # GPU-milli of one job
    cpus: Floats
    memory: Floats
    copies: Floats  # how many jobs (or parts of jobs that want several GPUs) one GPU holds
    reach: Floats  # its free milli when it holds one
    weights: Floats  # [class code, shape]: how often this shape is asked for where this class will do


def outlook(mix: DemandMix, fleet: Fleet) -> Outlook:
    """What no node here has GPUs enough for is left out, where anything else is asked for: room that is kept for it is kept for nobody."""
    most = int(fleet.gpus_total.max(initial=0))
    asked = [(kind, weight) for kind, weight in mix.weights() if kind.gpus]
    asked = [(kind, weight) for kind, weight in asked if kind.gpus <= most] or asked
    shapes: dict[tuple[int, int, int, int], float] = {}
    for kind, weight in asked:
        shapes[kind.shape] = shapes.get(kind.shape, 0.0) + weight
    kept = sorted(shapes, key=lambda shape: (-shapes[shape], shape))[:SHAPES]
    column = {shape: number for number, shape in enumerate(kept)}
    weights = np.zeros((len(fleet.codes), len(kept)))
    every_class = list(fleet.class_names)
    for kind, weight in asked:
        if kind.shape in column:
            classes = [fleet.codes.get(f"class {name}", 0) for name in kind.classes] or every_class
            weights[classes, column[kind.shape]] += weight
    gpus, milli, cpus, memory = (np.array(values, dtype=np.float64) for values in zip(*kept, strict=True))
    free = np.arange(WHOLE_MILLI + 1)[:, None]
    return Outlook(
        gpus=gpus,
        size=gpus * milli,
        cpus=np.maximum(cpus, 1),
        memory=np.maximum(memory, 1),
        copies=np.floor(free / milli),
        reach=np.where(free >= milli, free, 0).astype(np.float64),
        weights=weights / sum(shapes[shape] for shape in kept),
    )


class Packing:
    """Consumption of rows, remembered per shape of demand until the row changes."""

    def __init__(self, fleet: Fleet, expected: Outlook) -> None:
        self._fleet = fleet
        self.expected = expected
        self._now = _Now(fleet.version.size, expected.gpus.size)
        self._remembered: dict[object, _Remembered] = {}

    def consumption(self, rows: Rows, demand: Demand) -> Floats:
        """Of each row, all of which must have room for the demand."""
        known = self._known(demand)
        stale = rows[known.version[rows] != self._fleet.version[rows]]
        if stale.size:
            self._evaluate(known, stale, demand)
        return known.consumption[rows]

    def best_gpus(self, row: int, demand: Demand) -> tuple[int, ...]:
        """Which GPUs of the row to take, as `consumption` assumed."""
        free = self._fleet.free_gpus(row, demand)
        if demand.gpu_milli == WHOLE_MILLI:
            return tuple(free[: demand.spec.resources.gpus])
        self.consumption(np.array([row], dtype=np.intp), demand)
        return (int(self._known(demand).gpu[row]),)

    def remembered(self, demand: Demand) -> Remembered:
        """For a compiled search, which reads and writes it."""
        known = self._known(demand)
        return Remembered(self._fleet.version, known.version, known.consumption)

    def _known(self, demand: Demand) -> _Remembered:
        asked = demand.spec.resources
        shared_by = demand.client if demand.gpu_milli < WHOLE_MILLI else ""
        key = (asked.gpus, demand.gpu_milli, asked.cpus, asked.memory, shared_by)
        known = self._remembered.get(key)
        if known is None or known.version.size < self._fleet.version.size:
            if len(self._remembered) >= _SHAPES_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            known = self._remembered[key] = _Remembered(self._fleet.version.size)
        return known

    def _evaluate(self, known: _Remembered, rows: Rows, demand: Demand) -> None:
        self._look_at(rows)
        asked, expected, now = demand.spec.resources, self.expected, self._now
        copies, reach = now.copies[rows], now.reach[rows]
        if asked.gpus and demand.gpu_milli < WHOLE_MILLI:
            after, known.gpu[rows] = self._best_share(rows, copies, reach, demand)
        else:
            copies -= asked.gpus * expected.copies[WHOLE_MILLI]
            reach -= asked.gpus * expected.reach[WHOLE_MILLI]
            after = self._usable(rows, copies, reach, asked.cpus, asked.memory)
        lost = (now.usable[rows] - after) / (demand.gpu_milli_in_all or WHOLE_MILLI)
        known.consumption[rows] = np.maximum(lost, 0.0)
        known.version[rows] = self._fleet.version[rows]

    def _look_at(self, rows: Rows) -> None:
        """What rows are worth as they are, which all shapes of demand share."""
        fleet, expected, now = self._fleet, self.expected, self._now
        if now.version.size < fleet.version.size:
            now = self._now = _Now(fleet.version.size, expected.gpus.size)
        rows = rows[now.version[rows] != fleet.version[rows]]
        if rows.size:
            free = fleet.gpu_free[rows]
            now.copies[rows], now.reach[rows] = expected.copies[free].sum(1), expected.reach[free].sum(1)
            now.usable[rows] = self._usable(rows, now.copies[rows], now.reach[rows], 0, 0)
            now.version[rows] = fleet.version[rows]

    def _best_share(
        self, rows: Rows, copies: Floats, reach: Floats, demand: Demand
    ) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Usable capacity after the best choice of a GPU in each row, and which one. Of equals the fullest."""
        asked, fleet, expected = demand.spec.resources, self._fleet, self.expected
        free, owner = fleet.gpu_free[rows], fleet.gpu_owner[rows]
        possible = (free >= demand.gpu_milli) & ((owner == 0) | (owner == fleet.code(f"client {demand.client}")))
        at, gpu = np.nonzero(possible)
        was = free[at, gpu]
        now = was - demand.gpu_milli
        after = self._usable(
            rows[at],
            copies[at] - expected.copies[was] + expected.copies[now],
            reach[at] - expected.reach[was] + expected.reach[now],
            asked.cpus,
            asked.memory,
        )
        order = np.lexsort((gpu, was, -np.round(after, 6), at))
        first = order[np.searchsorted(at[order], np.arange(rows.size))]
        return after[first], gpu[first]

    def _usable(self, rows: Rows, copies: Floats, reach: Floats, cpus: int, memory: int) -> Floats:
        """GPU-milli, after so much CPU and memory has been given too."""
        fleet, expected = self._fleet, self.expected
        limit = np.minimum(
            (fleet.cpu_free[rows] - cpus)[:, None] / expected.cpus,
            (fleet.memory_free[rows] - memory)[:, None] / expected.memory,
        )
        jobs = np.floor(copies / expected.gpus)
        fits = (limit >= 1) & (jobs >= 1)
        fill = np.minimum(jobs, limit) * expected.size
        fill *= 1 - REACH_SHARE
        fill += REACH_SHARE * reach
        fill *= self._weights_of(rows)
        fill *= fits
        return np.asarray(fill.sum(1))

    def _weights_of(self, rows: Rows) -> Floats:
        """Of a class that came after the outlook was made nothing is expected: see `outlook`."""
        codes, known = self._fleet.gpu_class[rows], self.expected.weights
        if len(self._fleet.codes) == len(known):
            return known[codes]
        return np.where((codes < len(known))[:, None], known[np.minimum(codes, len(known) - 1)], 0.0)


_SHAPES_REMEMBERED = 128


class _Remembered:
    def __init__(self, rows: int) -> None:
        self.version = np.full(rows, -1, dtype=np.int64)
        self.consumption = np.zeros(rows)
        self.gpu = np.zeros(rows, dtype=np.int16)


class _Now:
    """Per row and shape: copies and reach summed over its GPUs, and the usable capacity of the row."""

    def __init__(self, rows: int, shapes: int) -> None:
        self.version = np.full(rows, -1, dtype=np.int64)
        self.copies, self.reach = np.zeros((rows, shapes)), np.zeros((rows, shapes))
        self.usable = np.zeros(rows)
