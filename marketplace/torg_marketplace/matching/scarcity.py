"""Scarcity: what GPU, CPU and memory of each class of nodes are worth to others, from the demand that arrived.

The expected demand is spread over the classes that will do for it, so that the p-norm of the loads (demand over what is free)
of all classes and resources is least; the marginal costs at that point are the prices. It is the congestion price of on-line
routing (Aspnes et al., 1997): a class that constrained jobs need is dear before it is full, so jobs that could run elsewhere
leave it alone. Only ratios matter: the demand is scaled to the free capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from torg_marketplace.matching.fleet import Fleet, Mask, version_code
from torg_marketplace.matching.mix import DemandMix, Kind
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand

Floats = npt.NDArray[np.float64]

POWER = 2  # the p-norm's p - 1
KINDS = 128  # of demand that are spread
ROUNDS = 60  # of Frank-Wolfe steps
_MOST_LOAD = 10.0
_GPU, _CPU, _MEMORY = 0, 1, 2


class Scarcity:
    """Prices by class code: [class, (GPU-milli, CPU-milli, memory byte)], about 1 per GPU-milli in a balanced market."""

    def __init__(self, prices: Floats) -> None:
        self._prices: list[list[float]] = prices.tolist()

    def of(self, demand: Demand) -> Callable[[int], float]:
        """What the demand's resources are worth to others, per GPU-milli of its own, on nodes of a class, given by its code."""
        prices, known = self._prices, len(self._prices)
        milli, cpus, memory = demand.gpu_milli_in_all, demand.spec.resources.cpus, demand.spec.resources.memory

        def on(code: int) -> float:
            if code >= known:
                return 0.0
            gpu, cpu, byte = prices[code]
            return (gpu * milli + cpu * cpus + byte * memory) / (milli or WHOLE_MILLI)

        return on


def nothing_scarce() -> Scarcity:
    return Scarcity(np.zeros((1, 3)))


def scarcity(mix: DemandMix, fleet: Fleet) -> Scarcity:
    codes = sorted(fleet.class_names)
    supply = _supply(fleet, codes)
    kinds = mix.weights()[:KINDS]
    asked = np.array([[kind.gpus * kind.gpu_milli, kind.cpus, kind.memory] for kind, _ in kinds], dtype=np.float64)
    will_do = _will_do(fleet, codes, [kind for kind, _ in kinds])
    arriving = np.array([weight for _, weight in kinds]) * will_do.any(axis=1)
    in_all = (arriving @ asked)[_GPU]
    free = supply[:, _GPU].sum()
    prices = np.zeros((len(fleet.codes), 3))
    if in_all > 0 and free > 0:
        arriving *= free / in_all
        prices[codes] = _congestion(asked, arriving, will_do, supply) * free / len(codes)
    return Scarcity(prices)


def _congestion(asked: Floats, arriving: Floats, will_do: Mask, supply: Floats) -> Floats:
    share = will_do / np.maximum(will_do.sum(axis=1, keepdims=True), 1)
    capacity = np.maximum(supply, 1.0)
    prices = np.zeros_like(supply)
    everyone, anywhere = np.arange(len(asked)), will_do.any(axis=1)
    for step in range(ROUNDS):
        load = (share * arriving[:, None]).T @ asked / capacity
        prices = np.minimum(load, _MOST_LOAD) ** POWER / capacity
        cost = np.where(will_do, asked @ prices.T, np.inf)
        best = np.zeros_like(share)
        best[everyone, cost.argmin(axis=1)] = anywhere
        share += (best - share) * 2 / (step + 3)
    return prices


def _supply(fleet: Fleet, codes: list[int]) -> Floats:
    """What is free on nodes that take jobs, by class."""
    rows = np.flatnonzero(fleet.present & fleet.live & fleet.accepting)
    place = np.searchsorted(codes, fleet.gpu_class[rows])
    columns = (fleet.gpu_free[rows].sum(axis=1), fleet.cpu_free[rows], fleet.memory_free[rows])
    return np.stack([np.bincount(place, weights=column, minlength=len(codes)) for column in columns], axis=1)


def _will_do(fleet: Fleet, codes: list[int], kinds: list[Kind]) -> Mask:
    """[kind, class]: whether some node of the class could hold a job of this kind when it is empty."""
    least = [
        (kind.gpus, kind.cpus, kind.memory, kind.min_vram, version_code(kind.min_capability)) for kind in kinds
    ]  # in the order of `Fleet.largest`
    found: Mask = np.all(fleet.largest()[codes] >= np.array(least, dtype=np.int64)[:, None], axis=2)
    named = {classes: _among(fleet, codes, classes) for classes in {kind.classes for kind in kinds} if classes}
    for number, kind in enumerate(kinds):
        if kind.classes:
            found[number] &= named[kind.classes]
    return found


def _among(fleet: Fleet, codes: list[int], classes: Iterable[str]) -> Mask:
    return np.isin(codes, [fleet.codes.get(f"class {name}", 0) for name in classes])
