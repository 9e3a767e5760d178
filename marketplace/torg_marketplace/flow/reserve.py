"""Reserve: nodes are kept for the gang that is first in the backlog and cannot start (`matching/reservation.py` says how).

Kept in the matcher's memory alone: another matcher works it out anew, from the same leases, so at worst its first promise counts again.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from sqlalchemy import select

from torg_marketplace.flow.preempt import free_room, room_of_lease
from torg_marketplace.flow.rows import node_snapshots, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching.backlog import Waiting
from torg_marketplace.matching.constraints import constraints, has_room, passing
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.preempt import Room
from torg_marketplace.matching.reservation import PREPARING_MS, Busy, Place, Reservation, reserve
from torg_marketplace.matching.snapshot import Demand, units_needed
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES, LeaseState

_NODES_LOOKED_AT = 256  # those with room now first, then the cheapest
_NOT_NOW = {"capacity"}  # what passes with time


async def keep_nodes(market: Market, engine: Engine, job: Waiting) -> Reservation | None:
    """For `job`, a gang that cannot start now. None when it waits for more than for others to end."""
    gang, before = job.demand.spec.gang, market.book.reservation
    if gang is None:
        return None
    asked = job.demand.spec.resources
    async with market.reading() as unit:
        if before is not None and before.is_fresh(job.job_id, unit.now_ms):
            return before
        places = await _places(unit, engine, job.demand)
        room = Room(units_needed(asked), asked.cpus, asked.memory, asked.disk)
        return reserve(job.job_id, gang, room, places, before, unit.now_ms)


async def _places(unit: Unit, engine: Engine, demand: Demand) -> list[Place]:
    asked = demand.spec.resources
    fit = _fitting(engine, demand, unit.policy.decimals)
    busy: dict[str, list[Busy]] = defaultdict(list)
    query = (
        select(LeaseRow, JobRow)
        .join(JobRow, JobRow.job_id == LeaseRow.job_id)
        .where(LeaseRow.node_id.in_(fit), LeaseRow.state.in_(LIVE_LEASE_STATES))
    )
    for lease, job in (await unit.session.execute(query)).all():
        room = room_of_lease(lease, spec_of(job).resources, asked)
        busy[lease.node_id].append(Busy(room, _ends_ms(unit, lease)))
    return [
        Place(
            node_id=node.node_id,
            price=node.offer.price_per_gpu_hour,
            region=node.offer.region or "",
            free=free_room(node, asked),
            leases=tuple(busy[node.node_id]),
        )
        for node in await node_snapshots(unit, only=fit)
    ]


def _fitting(engine: Engine, demand: Demand, decimals: int) -> list[NodeId]:
    fleet = engine.fleet
    rules = [rule for rule in constraints(demand, decimals) if rule.name not in _NOT_NOW]
    rows = passing(fleet, fleet.rows(), rules)
    order = np.lexsort((fleet.price[rows], ~has_room(fleet, rows, demand)))
    return [fleet.node_id(int(row)) for row in rows[order][:_NODES_LOOKED_AT]]


def _ends_ms(unit: Unit, lease: LeaseRow) -> int:
    """At the latest, unless its node is late."""
    if lease.state == LeaseState.STOPPING and lease.stop_requested_at_ms is not None:
        ends_ms = lease.stop_requested_at_ms + unit.policy.preempt_grace_ms
    elif lease.started_at_ms is not None:
        ends_ms = lease.started_at_ms + lease.max_duration_ms
    else:
        ends_ms = lease.granted_at_ms + PREPARING_MS + lease.max_duration_ms
    return max(ends_ms, unit.now_ms)
