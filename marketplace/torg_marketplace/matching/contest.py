"""Who wins: scores of the nodes that can run a job, compared without ever sorting all of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torg_marketplace.matching.fleet import Fleet, Ints, Rows

Floats = npt.NDArray[np.float64]


class Score(NamedTuple):
    """Factors of one node's score. `total` is price x all of them (by reliability: over it), base units per GPU-hour."""

    price: int
    packing: float
    scarcity: float
    locality: float
    reliability: float
    total: float


@dataclass(frozen=True, slots=True)
class Entries:
    """Columns of candidates of one class; `factor` is the product of all factors."""

    rows: Rows
    price: Ints
    packing: Floats
    scarcity: float
    locality: Floats
    reliability: Floats
    factor: Floats
    total: Floats


class Contest:
    def __init__(self, fleet: Fleet) -> None:
        self.least = inf  # total of the best so far
        self._fleet = fleet
        self._entries: list[Entries] = []

    def enter(self, entries: Entries) -> None:
        self._entries.append(entries)
        self.least = min(self.least, entries.total.min().item())

    def best_two(self) -> list[tuple[int, Score]]:
        """Rows and scores of the best and the next. Of equal totals (free nodes all have 0) the smaller factor is better,
        then the smaller hash of the id."""
        finalists = sorted(key for number, entries in enumerate(self._entries) for key in self._two_of(number, entries))
        return [
            (int(self._entries[number].rows[at]), _score(self._entries[number], at)) for *_, number, at in finalists[:2]
        ]

    def _two_of(self, number: int, entries: Entries) -> list[tuple[float, float, int, int, int]]:
        total = entries.total
        if total.size > 2:
            second = np.partition(total, 1)[1]
            places = (total <= second).nonzero()[0].tolist()  # more than two when there are equals
        else:
            places = list(range(total.size))
        ties = self._fleet.tie
        keys = [(total[at].item(), entries.factor[at].item(), int(ties[entries.rows[at]]), number, at) for at in places]
        return sorted(keys)[:2]


def _score(entries: Entries, at: int) -> Score:
    return Score(
        price=int(entries.price[at]),
        packing=entries.packing[at].item(),
        scarcity=entries.scarcity,
        locality=entries.locality[at].item(),
        reliability=entries.reliability[at].item(),
        total=entries.total[at].item(),
    )
