"""When a job that finds no room now would find some: leases on fitting nodes end, one after the other, until it fits.

*Latest* is what leases may take (their max_duration), *expected* what leases have taken of that lately. Jobs that wait with the
same or a higher bid go first: each is taken to use one of the openings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torg_marketplace.matching.fleet import Fleet
from torg_marketplace.matching.snapshot import Demand, units_needed
from torg_protocol.ids import NodeId

ASSUMED_SHARE = 1.0  # of its max_duration that a lease takes, until leases have been seen


@dataclass(frozen=True, slots=True)
class Holding:
    """What a live lease holds of its node. It began (or was granted) at `since_ms`."""

    since_ms: int
    max_duration_ms: int
    gpus: int
    slots: int
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int

    def ends_ms(self, share: float, now_ms: int) -> int:
        """When it ends if it takes this share of its time; one that has outlived it may end at any moment."""
        return max(self.since_ms + int(self.max_duration_ms * share), now_ms)


@dataclass(frozen=True, slots=True)
class PastLease:
    """A lease that ended: what is learned from it. None where it never got so far."""

    image: str
    prepared_ms: int | None  # from grant to start
    ran_ms: int | None
    max_duration_ms: int


@dataclass(frozen=True, slots=True)
class History:
    """What leases did lately."""

    leases: Sequence[PastLease] = ()

    @property
    def usual_share(self) -> tuple[float, int]:
        """Median share of max_duration that leases ran, and of how many."""
        shares = [min(item.ran_ms / item.max_duration_ms, 1.0) for item in self.leases if item.ran_ms is not None]
        return (median(shares), len(shares)) if shares else (ASSUMED_SHARE, 0)

    def usual_preparation_ms(self, image: str) -> tuple[int | None, int, bool]:
        """Median time from grant to start, of how many, and whether with this very image. None when nothing was seen."""
        known = [(item.image, item.prepared_ms) for item in self.leases if item.prepared_ms is not None]
        same = [prepared for name, prepared in known if name == image]
        taken = same or [prepared for _, prepared in known]
        return (int(median(taken)) if taken else None, len(taken), bool(same))


def openings_ms(
    fleet: Fleet,
    rows: Iterable[int],
    demand: Demand,
    held: Mapping[NodeId, Sequence[Holding]],
    now_ms: int,
    *,
    share: float,
) -> list[int]:
    """When each of these nodes would have room, soonest first, if its leases took this share of their time. Nodes that would
    have none even then are left out."""
    found = [_opening_ms(fleet, row, demand, held.get(fleet.node_id(row), ()), now_ms, share) for row in rows]
    return sorted(at_ms for at_ms in found if at_ms is not None)


def _opening_ms(
    fleet: Fleet, row: int, demand: Demand, held: Sequence[Holding], now_ms: int, share: float
) -> int | None:
    asked = demand.spec.resources
    gpus, slots = int(fleet.gpus_whole[row]), int(fleet.slots_free[row])
    cpus, memory, disk = int(fleet.cpu_free[row]), int(fleet.memory_free[row]), int(fleet.disk_free[row])
    at_ms = now_ms
    for lease in [None, *sorted(held, key=lambda item: item.ends_ms(share, now_ms))]:
        if lease is not None:
            at_ms = lease.ends_ms(share, now_ms)
            gpus, slots, cpus = gpus + lease.gpus, slots + lease.slots, cpus + lease.cpu_millis
            memory, disk = memory + lease.memory_bytes, disk + lease.disk_bytes
        enough = gpus >= asked.gpus if asked.gpus else slots >= units_needed(asked)
        if enough and cpus >= asked.cpus and memory >= asked.memory and disk >= asked.disk:
            return at_ms
    return None
