"""Slow leases: time is billed, so slowness must not pay. The published rule, pure:

    measured  = of each unit of the lease, the upper median of what proofs during the lease showed; the worst unit counts, for work waits for it.
                A machine that works for its client may take BUSY_ALLOWANCE times as long: its figure is multiplied by that.
    refund    = 0                                   with fewer than LEAST_PROOFS of a unit, or while measured x tolerance >= class
                price x (class - measured) / class  otherwise, rounded down

The class is what the unit was established as when the lease was granted (a lower bound: an honest unit is faster). Doubt is the node's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

BUSY_ALLOWANCE = 3
LEAST_PROOFS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One proof with right digests. 10^9 operations per second."""

    unit: str
    gops: float
    busy: bool


@dataclass(frozen=True, slots=True)
class Shortfall:
    unit: str
    sold_gops: int
    measured_gops: int
    proofs: int
    refund: int  # base units


def shortfall(price: int, sold: Mapping[str, int], seen: Sequence[Measured], *, tolerance: float) -> Shortfall | None:
    """What is given back of a lease's price, by its worst unit; None when nothing is."""
    found = []
    for unit, sold_gops in sold.items():
        figures = [item.gops * (BUSY_ALLOWANCE if item.busy else 1) for item in seen if item.unit == unit]
        if sold_gops <= 0 or len(figures) < LEAST_PROOFS:
            continue
        measured = int(median_high(figures))
        if measured * tolerance < sold_gops:
            refund = price * (sold_gops - measured) // sold_gops
            found.append(Shortfall(unit, sold_gops, measured, len(figures), refund))
    worst = max(found, key=lambda item: item.refund, default=None)
    return worst if worst is not None and worst.refund > 0 else None
