"""Jobs that wait: who is tried first when something becomes free, and how many are tried.

Order. Spot jobs come after all others: they get what is left. A job's claim is its bid per GPU-hour, growing by itself with every ten minutes of waiting: a low bid is late, never last
for ever. Among equal bids accounts share: the one with fewer jobs ahead (running, or tried before in this pass) goes first, and
ten minutes of waiting make up for one job ahead. Within an account its own priorities decide, then age.

Bounded backfill. A job that cannot start blocks nobody, and costs a look at the fleet. A pass looks for the first BACKFILL jobs
that fail, and then for as many of the rest, those first that were not looked at for longest: a long backlog costs no more than a
short one, and everybody is looked at. A job is not looked for when one that wants the same has failed in this pass.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torg_marketplace.matching.constraints import pulled_images
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand

AGEING_MS = 600_000  # a bid counts once more for each such time that its job has waited
BACKFILL = 32
J = TypeVar("J", bound="InLine")


@dataclass(frozen=True, slots=True)
class InLine:
    """What a job's turn depends on."""

    job_id: str
    bid: int  # the most that its client pays per GPU-hour, base units
    since_ms: int
    account: str = ""
    priority: int = 0  # among jobs of the same account and bid, the higher first
    spot: bool = False

    def claim(self, now_ms: int) -> int:
        """Bid x (1 + waited / AGEING_MS), in thousandths. A bid of nothing ages as a bid of one base unit does."""
        waited_ms = max(now_ms - self.since_ms, 0)
        return max(self.bid, 1) * 1000 * (AGEING_MS + waited_ms) // AGEING_MS


@dataclass(frozen=True, slots=True)
class Waiting(InLine):
    demand: Demand = field(kw_only=True)
    wish: Hashable = field(init=False, compare=False)  # equal for jobs that the same nodes can run

    def __post_init__(self) -> None:
        object.__setattr__(self, "wish", _wish(self.demand))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands in the order, and who stands before it: jobs that bid more; that bid no more and have waited longer for it; of other
    accounts, by turn, with the same bid; and of its own account."""

    place: int  # from 1
    waiting: int
    bid_more: int = 0
    waited_longer: int = 0
    by_turn: int = 0
    own: int = 0


def place_of(job_id: str, waiting: Iterable[InLine], now_ms: int, running: Mapping[str, int]) -> Place | None:
    """None when it does not wait."""
    order = list(in_order(waiting, now_ms, running))
    place = next((number for number, job in enumerate(order) if job.job_id == job_id), None)
    if place is None:
        return None
    mine = order[place]
    others = [job for job in order[:place] if job.account != mine.account]
    more = sum(job.bid > mine.bid or (mine.spot and not job.spot) for job in others)
    turn = sum(job.bid == mine.bid and job.spot == mine.spot for job in others)
    return Place(place + 1, len(order), more, len(others) - more - turn, turn, place - len(others))


class Backlog:
    """Remembers from pass to pass who was looked at when."""

    def __init__(self) -> None:
        self._pass = 0
        self._looked_at: dict[str, int] = {}  # job -> pass
        self._failed: set[Hashable] = set()
        self._failures = 0

    def turns(self, waiting: Sequence[Waiting], now_ms: int, running: Mapping[str, int]) -> Iterator[Waiting]:
        """Jobs to look for now, in turn. Say `failed` for each that cannot start before asking for the next.

        `running`: how many jobs each account has leased."""
        self._pass += 1
        self._failed.clear()
        self._failures = 0
        self._looked_at = {job.job_id: self._looked_at.get(job.job_id, 0) for job in waiting}
        order = in_order(waiting, now_ms, running)
        yield from self._until_bound(order, BACKFILL)
        rest = sorted(order, key=lambda job: self._looked_at[job.job_id])  # stable: among equals the order stays
        yield from self._until_bound(iter(rest), 2 * BACKFILL)

    def failed(self, job: Waiting) -> None:
        self._failed.add(job.wish)
        self._failures += 1

    def _until_bound(self, jobs: Iterator[Waiting], bound: int) -> Iterator[Waiting]:
        while self._failures < bound and (job := next(jobs, None)) is not None:
            self._looked_at[job.job_id] = self._pass
            if job.wish not in self._failed:
                yield job


def in_order(waiting: Iterable[J], now_ms: int, running: Mapping[str, int] | None = None) -> Iterator[J]:
    """All of them, best first."""
    by_bid: dict[tuple[bool, int], list[J]] = defaultdict(list)
    for job in waiting:
        by_bid[job.spot, job.bid].append(job)
    ahead = dict(running or {})
    queues = [_EqualBids(jobs, ahead) for jobs in by_bid.values()]
    heap = [(*queue.claim(now_ms), number) for number, queue in enumerate(queues)]
    heapq.heapify(heap)
    while heap:
        *claim, number = heapq.heappop(heap)
        queue = queues[number]
        if (now := queue.claim(now_ms)) > tuple(claim):  # others of that account went ahead: a younger job leads here
            heapq.heappush(heap, (*now, number))
            continue
        yield queue.pop()
        if not queue.is_empty:
            heapq.heappush(heap, (*queue.claim(now_ms), number))


class _EqualBids(Generic[J]):
    """Jobs of one bid: accounts in turn. `ahead` is shared by all queues of a pass."""

    def __init__(self, jobs: Sequence[J], ahead: dict[str, int]) -> None:
        self._ahead = ahead
        self._of: dict[str, list[J]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: (-job.priority, job.since_ms, job.job_id), reverse=True):
            self._of[job.account].append(job)  # the best last
        self._heap = [self._key(account) for account in self._of]
        heapq.heapify(self._heap)

    @property
    def is_empty(self) -> bool:
        return not self._heap

    @property
    def head(self) -> J:
        while (now := self._key(account := self._heap[0][-1])) > self._heap[0]:
            heapq.heapreplace(self._heap, now)
        return self._of[account][-1]

    def claim(self, now_ms: int) -> tuple[bool, int]:
        """The smaller, the earlier."""
        job = self.head
        return job.spot, -job.claim(now_ms)

    def pop(self) -> J:
        job = self.head
        self._of[job.account].pop()
        self._ahead[job.account] = self._ahead.get(job.account, 0) + 1
        if self._of[job.account]:
            heapq.heapreplace(self._heap, self._key(job.account))
        else:
            heapq.heappop(self._heap)
        return job

    def _key(self, account: str) -> tuple[int, str, str]:
        job = self._of[account][-1]
        return self._ahead.get(account, 0) * AGEING_MS + job.since_ms, job.job_id, account


def _wish(demand: Demand) -> Hashable:
    spec = demand.spec
    return (
        spec.resources,
        spec.gang,
        demand.gpu_milli,
        demand.client if demand.gpu_milli < WHOLE_MILLI else "",
        spec.isolation,
        spec.root,
        bool(pulled_images(spec)),
        spec.egress_wanted,
        demand.only_on,
        spec.verify.policy,
        spec.checkpoint.enabled,
        demand.max_duration_ms,
        demand.price_limit,
        demand.amount_limit,
        demand.regions,
        demand.min_reputation_permille,
        spec.placement.min_proven_gops,
        demand.features,
        demand.all_excluded,
        demand.paused,
        spec.spot,
    )
