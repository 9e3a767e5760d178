"""Nodes that are kept for a gang, so that small jobs, which need one node each and never wait for two, cannot keep it out for ever.

The first gang in the backlog's order that cannot start has a reservation: the nodes on which it can start soonest, and when that will be at
the latest, from what the leases there may still last. There is one at a time. What is tried after the gang goes elsewhere, or onto a kept
node if it ends before (bounded backfill, as EASY does it: Lifka, "The ANL/IBM SP Scheduling System", 1995). What is tried before it, takes
what it wants: a higher bid still goes first, and every bid is overtaken with age.

While a gang is first, its moment never moves away: nodes are chosen anew, the moment is the least that was promised. So it starts when the
longest lease on the best nodes ends, and no job that came meanwhile can delay that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torg_marketplace.matching.preempt import Room
from torg_marketplace.matching.snapshot import Demand
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import Gang

PREPARING_MS = 120_000  # what a job is given from its grant to its start, beside its max_duration
CHOSEN_FOR_MS = 1_000  # nodes are chosen anew after that


@dataclass(frozen=True, slots=True)
class Busy:
    """A lease that lives, and when it ends at the latest."""

    room: Room
    until_ms: int


@dataclass(frozen=True, slots=True)
class Place:
    """A node that could run a member if it had room."""

    node_id: NodeId
    price: int
    region: str
    free: Room
    leases: tuple[Busy, ...]

    def free_ms(self, asked: Room, now_ms: int) -> int | None:
        """When it has room at the latest; None: never, whatever ends."""
        room, at_ms = self.free, now_ms
        for lease in sorted(self.leases, key=lambda lease: lease.until_ms):
            if room.holds(asked):
                break
            room, at_ms = room + lease.room, max(at_ms, lease.until_ms)
        return at_ms if room.holds(asked) else None


@dataclass(frozen=True, slots=True)
class Reservation:
    """`start_ms`: when `nodes` are free at the latest, as it was first promised."""

    job_id: str
    nodes: frozenset[NodeId]
    start_ms: int
    chosen_ms: int

    def in_words(self, now_ms: int) -> str:
        """For whom they are kept."""
        minutes = max(0, self.start_ms - now_ms) // 60_000 + 1
        return f"{len(self.nodes)} are kept for it, and free within {minutes} min at the latest"

    def restricts(self, demand: Demand, now_ms: int) -> bool:
        """Whether a job with this demand has to stay away from the kept nodes."""
        return now_ms + PREPARING_MS + demand.max_duration_ms > self.start_ms

    def outside(self, demand: Demand, now_ms: int) -> Demand:
        """Of a job that is tried after the gang."""
        return replace(demand, excluded=demand.excluded | self.nodes) if self.restricts(demand, now_ms) else demand

    def is_fresh(self, job_id: str, now_ms: int) -> bool:
        return self.job_id == job_id and 0 <= now_ms - self.chosen_ms < CHOSEN_FOR_MS


def reserve(
    job_id: str, gang: Gang, asked: Room, places: Iterable[Place], before: Reservation | None, now_ms: int
) -> Reservation | None:
    """For the gang that is first now. `before`: what was kept until now, for whomever. None: these nodes can never hold it."""
    chosen = _soonest(gang, asked, places, now_ms)
    if chosen is None:
        return None
    nodes, start_ms = chosen
    if before is not None and before.job_id == job_id:
        start_ms = min(start_ms, before.start_ms)
    return Reservation(job_id, nodes, start_ms, now_ms)


def _soonest(gang: Gang, asked: Room, places: Iterable[Place], now_ms: int) -> tuple[frozenset[NodeId], int] | None:
    found: dict[str, list[tuple[int, int, NodeId]]] = defaultdict(list)
    for place in places:
        if (at_ms := place.free_ms(asked, now_ms)) is not None:
            found[place.region if gang.same_region else ""].append((at_ms, place.price, place.node_id))
    complete = [sorted(each)[: gang.size] for each in found.values() if len(each) >= gang.size]
    if not complete:
        return None
    best = min(complete, key=_last_and_price)
    return frozenset(node_id for _, _, node_id in best), best[-1][0]


def _last_and_price(members: Sequence[tuple[int, int, NodeId]]) -> tuple[int, int]:
    return members[-1][0], sum(price for _, price, _ in members)
