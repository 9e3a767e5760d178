"""What has been asked for lately: kinds of demand with decayed weights. The engine knows the future only from this.

A demand is counted when it arrives, once. Weights halve every HALF_LIFE demands, so the average follows the market and its
memory needs no clock. Until enough has been seen, an assumed mix of one to eight GPUs stands in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple

from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand

HALF_LIFE = 4_096  # demands
_REMEMBERED = 512  # kinds; the rarest are forgotten first
_GRID = 1.15  # jobs whose CPU and memory are in the same step of powers of this are of one kind
_SHARE_STEP_MILLI = 50
_GROWS = 2 ** (1 / HALF_LIFE)
_RESCALE_AT = 1e12
_ASSUMED = {1: 8.0, 2: 4.0, 4: 2.0, 8: 2.0}  # GPUs -> weight, in demands
_ASSUMED_CPU_MILLIS, _ASSUMED_MEMORY = 4_000, 8 << 30  # per GPU


class Kind(NamedTuple):
    gpus: int
    gpu_milli: int
    cpus: int
    memory: int
    classes: frozenset[str] = frozenset()  # lower case; empty: any
    min_vram: int = 0
    min_capability: str | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.gpus, self.gpu_milli, self.cpus, self.memory


def kind_of(demand: Demand) -> Kind:
    asked = demand.spec.resources
    return Kind(
        gpus=asked.gpus,
        gpu_milli=demand.gpu_milli if asked.gpus else 0,
        cpus=asked.cpus,
        memory=asked.memory,
        classes=demand.gpu_classes,
        min_vram=asked.min_vram or 0,
        min_capability=asked.min_compute_capability,
    )


class DemandMix:
    def __init__(self) -> None:
        self.seen = 0
        self._weights: dict[Kind, float] = {}
        self._unit = 1.0  # what one demand of now weighs
        for gpus, weight in _ASSUMED.items():
            kind = Kind(gpus, WHOLE_MILLI, gpus * _ASSUMED_CPU_MILLIS, gpus * _ASSUMED_MEMORY)
            self._weights[kind] = weight

    def observe(self, demand: Demand) -> None:
        kind = kind_of(demand)
        self.seen += 1
        self._unit *= _GROWS
        self._weights[kind] = self._weights.get(kind, 0.0) + self._unit
        if self._unit > _RESCALE_AT or len(self._weights) > 2 * _REMEMBERED:
            self._compact()

    def weights(self) -> list[tuple[Kind, float]]:
        """Similar kinds as one, in the words of the commonest of them; heaviest first, in demands of now."""
        merged: dict[Hashable, tuple[Kind, float]] = {}
        for kind, weight in self._sorted():
            step = _step_of(kind)
            first, so_far = merged.get(step, (kind, 0.0))
            merged[step] = first, so_far + weight / self._unit
        return sorted(merged.values(), key=lambda item: -item[1])

    def _sorted(self) -> list[tuple[Kind, float]]:
        """Heaviest first. Equal ones in the order in which they came, which equal histories share."""
        return sorted(self._weights.items(), key=lambda item: -item[1])

    def _compact(self) -> None:
        self._weights = {kind: weight / self._unit for kind, weight in self._sorted()[:_REMEMBERED]}
        self._unit = 1.0


@lru_cache(maxsize=4 * _REMEMBERED)
def _step_of(kind: Kind) -> Hashable:
    steps = tuple(round(math.log(amount, _GRID)) if amount > 0 else 0 for amount in (kind.cpus, kind.memory))
    milli = round(kind.gpu_milli / _SHARE_STEP_MILLI)
    return kind.gpus, milli, steps, kind.classes, kind.min_vram, kind.min_capability
