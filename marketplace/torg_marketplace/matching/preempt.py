"""Which spot leases make room for a job that could not start otherwise.

Few leases before little lost work: each stop costs somebody a restart. Among equals the work that is lost is the cheapest, in base
units: what ran since the newest durable checkpoint, at the lease's price. A lease that has run for less than its protection is left
alone. The protection doubles with each preemption of its job, so that a spot job that writes checkpoints comes to its end,
however busy the market is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torg_protocol.jobspec import Gang

MOST_LEASES = 8  # of one plan
_LOOKED_AT = 12  # spot leases of one node, those that lose the least
_MOST_DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class Room:
    """`units`: GPUs for a job that wants some, slots otherwise."""

    units: int
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int

    def __add__(self, other: Room) -> Room:
        return Room(
            self.units + other.units,
            self.cpu_millis + other.cpu_millis,
            self.memory_bytes + other.memory_bytes,
            self.disk_bytes + other.disk_bytes,
        )

    def holds(self, asked: Room) -> bool:
        return (
            self.units >= asked.units
            and self.cpu_millis >= asked.cpu_millis
            and self.memory_bytes >= asked.memory_bytes
            and self.disk_bytes >= asked.disk_bytes
        )


@dataclass(frozen=True, slots=True)
class SpotLease:
    """`lost`: base units of work that a stop now would lose at most."""

    lease_id: str
    room: Room
    lost: int


@dataclass(frozen=True, slots=True)
class Host:
    """A node that could run the job if there were room. `leases`: those that may be preempted now."""

    node_id: str
    price: int
    free: Room
    leases: tuple[SpotLease, ...]
    region: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    node_id: str
    lease_ids: tuple[str, ...]
    lost: int


def plan(hosts: Iterable[Host], asked: Room) -> Plan | None:
    """The least that makes room; None when stopping spot leases cannot."""
    found = [
        (len(chosen), lost, host.price, host.node_id, chosen) for host in hosts for chosen, lost in _least(host, asked)
    ]
    if not found:
        return None
    _, lost, _, node_id, chosen = min(found)
    return Plan(node_id, chosen, lost)


def plan_all(hosts: Iterable[Host], asked: Room, gang: Gang) -> tuple[Plan, ...]:
    """A node for each member, those that are free first, then where the least has to be stopped; empty when they are not all to be had, and then
    nothing is stopped."""
    found: dict[str, list[tuple[int, int, int, str, tuple[str, ...]]]] = defaultdict(list)
    for host in hosts:
        ways = [((), 0)] if host.free.holds(asked) else _least(host, asked)
        region = host.region if gang.same_region else ""
        found[region] += [(len(chosen), lost, host.price, host.node_id, chosen) for chosen, lost in ways]
    complete = [sorted(each)[: gang.size] for each in found.values() if len(each) >= gang.size]
    if not complete:
        return ()
    best = min(complete, key=lambda members: [sum(member[place] for member in members) for place in range(3)])
    return tuple(Plan(node_id, chosen, lost) for _, lost, _, node_id, chosen in best)


def _least(host: Host, asked: Room) -> Iterator[tuple[tuple[str, ...], int]]:
    """The cheapest of the smallest sets, if any will do."""
    leases = sorted(host.leases, key=lambda lease: (lease.lost, lease.lease_id))[:_LOOKED_AT]
    for count in range(1, min(len(leases), MOST_LEASES) + 1):
        fitting = [chosen for chosen in combinations(leases, count) if _room_with(host, chosen).holds(asked)]
        if fitting:
            best = min(fitting, key=lambda chosen: sum(lease.lost for lease in chosen))
            yield tuple(lease.lease_id for lease in best), sum(lease.lost for lease in best)
            return


def _room_with(host: Host, chosen: Sequence[SpotLease]) -> Room:
    room = host.free
    for lease in chosen:
        room += lease.room
    return room


def is_protected(started_ms: int | None, preemptions: int, now_ms: int, protected_ms: int) -> bool:
    """What has not started has nothing to lose, and is not protected."""
    return started_ms is not None and now_ms < started_ms + (protected_ms << min(preemptions, _MOST_DOUBLINGS))
