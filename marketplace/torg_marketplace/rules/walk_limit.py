"""How long filling and walking memory may take, learned from what units of the same class take.

Time is measured as a share of what a walk takes that recomputes every row that it reads: so it does not depend on the unit's speed, and who has stored
only the part s of the memory is slower by 1 - s. The limit is the median of the class and some median absolute deviations (Hampel, JASA 69, 1974; both
break down only when half of the values are false), each owner counting once, and never above the limit that holds while nothing is learned.
So liars can move it only within what honest owners show, as long as they are fewer, however many nodes and proofs they add. Being too slow is no lie: the
memory counts as proven no more after two, and nobody is struck for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from torg_protocol.proofs import WalkTask

LATENCY_MS = 250  # of network and processes
LEAST_OWNERS = 8  # before anything is learned
_BUSY = 3  # a machine that works for a client may take so many times as long
_DEVIATIONS = 3
_MAD_TO_SIGMA = 1.4826  # of normal deviates
_MARGIN = 0.03  # of what recomputing takes: a smaller over-claim is not worth catching


@dataclass(frozen=True, slots=True)
class WalkSample:
    """One right answer of a unit of the class. `share`: of what recomputing would have taken it."""

    owner: str
    share: float


def share_of(walk: WalkTask, walk_ms: float, gops: float) -> float:
    return walk_ms / recomputing_ms(walk, gops)


def recomputing_ms(walk: WalkTask, gops: float) -> float:
    """Of a walk with nothing stored, at this speed."""
    return walk.operations_without_storage / (gops * 1e6)


def learned_share(samples: Sequence[WalkSample]) -> float | None:
    """The largest share that counts as memory in this class; None while fewer than LEAST_OWNERS were measured."""
    by_owner = defaultdict[str, list[float]](list)
    for sample in samples:
        by_owner[sample.owner].append(sample.share)
    if len(by_owner) < LEAST_OWNERS:
        return None
    shares = [median(each) for each in by_owner.values()]
    centre = median(shares)
    return centre + _DEVIATIONS * _MAD_TO_SIGMA * median(abs(share - centre) for share in shares)


def walk_limit_ms(walk: WalkTask, gops: float, *, learned: float | None = None, busy: bool = False) -> float:
    """Until something is learned: well above fill and walk from memory, below a walk that recomputes most of what it reads."""
    fixed = (3 * walk.fill_operations + 0.4 * walk.operations_without_storage) / (gops * 1e6)
    within = fixed if learned is None else min(fixed, (learned + _MARGIN) * recomputing_ms(walk, gops))
    return (LATENCY_MS + within) * (_BUSY if busy else 1)
