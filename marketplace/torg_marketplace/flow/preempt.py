"""Preempt: spot leases make room for a job at the full price that could not start otherwise.

The leases are stopped with their grace, in which the job may write a last checkpoint; the node reports, the lease ends (reason
preempted, paid up to its newest checkpoint), its job is queued again. The job that waits is granted what has become free by the
matcher's next passes, in which jobs at the full price come first. Until then nothing further is stopped for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import exists, select

from torg_marketplace.flow.rows import demand_of, job_row, node_snapshots, spec_of
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching.backlog import Waiting
from torg_marketplace.matching.constraints import can_run, constraints
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.gangs import nodes_free_now
from torg_marketplace.matching.preempt import Host, Plan, Room, SpotLease, is_protected, plan, plan_all
from torg_marketplace.matching.snapshot import NodeSnapshot, units_needed
from torg_marketplace.storage.models import JobRow, LeaseRow, NodeRow
from torg_marketplace.storage.moves import MovedMeanwhile
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import Resources
from torg_protocol.money import cost
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, JobState, LeaseState

_NODES_LOOKED_AT = 200
_NOT_WHILE = {"capacity"}  # the constraint that stopping leases changes
_STOPPABLE = LIVE_LEASE_STATES - {LeaseState.STOPPING}


@dataclass(frozen=True, slots=True)
class _Found:
    lease: LeaseRow
    resources: Resources


async def make_room(market: Market, engine: Engine, job: Waiting, kept: frozenset[NodeId]) -> str | None:
    """Stops spot leases for `job` if that lets it start, of a gang all of it; what it waits for then, in words. None: it waits for something
    else. `kept`: nodes that it would not get. Safe to repeat: while room is being made for a job, nothing further is stopped for it."""
    if job.demand.spec.spot:
        return None
    free = nodes_free_now(engine, job.demand) if job.demand.spec.gang is not None else ()
    try:
        async with market.transaction() as unit:
            return await _make_room(unit, await job_row(unit, job.job_id), free, kept)
    except MovedMeanwhile:
        return None  # a lease ended just now: the next pass sees it


async def _make_room(unit: Unit, job: JobRow, free: Sequence[NodeId], kept: frozenset[NodeId]) -> str | None:
    if job.state != JobState.QUEUED or not await _any_spot_lease(unit):
        return None
    if making := await _being_stopped_for(unit, job):
        return f"{making} spot lease(s) make room for it"
    lease_ids = [lease_id for chosen in await _plan(unit, job, free, kept) for lease_id in chosen.lease_ids]
    if not lease_ids:
        return None
    for lease_id in lease_ids:
        lease = await unit.session.get_one(LeaseRow, lease_id)
        lease.preempted_for = job.job_id
        await stop_lease(unit, lease, await job_row(unit, lease.job_id), EndReason.PREEMPTED)
        unit.wake(f"job:{lease.job_id}")
    return f"{len(lease_ids)} spot lease(s) make room for it"


async def _any_spot_lease(unit: Unit) -> bool:
    query = select(exists().where(LeaseRow.spot, LeaseRow.state.in_(LIVE_LEASE_STATES)))
    return bool(await unit.session.scalar(query))


async def _being_stopped_for(unit: Unit, job: JobRow) -> int:
    query = select(LeaseRow.lease_id).where(LeaseRow.preempted_for == job.job_id, LeaseRow.state.in_(LIVE_LEASE_STATES))
    return len((await unit.session.scalars(query)).all())


async def _plan(unit: Unit, job: JobRow, free: Sequence[NodeId], kept: frozenset[NodeId]) -> tuple[Plan, ...]:
    demand = demand_of(job, unit.now_ms)
    asked = demand.spec.resources
    found = await _preemptible(unit)
    busy = [NodeId(node_id) for node_id in sorted(found) if node_id not in kept][:_NODES_LOOKED_AT]
    nodes = await node_snapshots(unit, only=[*busy, *free[:_NODES_LOOKED_AT]])
    rules = [rule for rule in constraints(demand, unit.policy.decimals) if rule.name not in _NOT_WHILE]
    hosts = [
        Host(
            node_id=node.node_id,
            price=node.offer.price_per_gpu_hour,
            region=node.offer.region or "",
            free=free_room(node, asked),
            leases=tuple(_spot_lease(unit, item, asked) for item in found[node.node_id]),
        )
        for node in nodes
        if can_run(node, rules)
    ]
    room = Room(units_needed(asked), asked.cpus, asked.memory, asked.disk)
    if (gang := demand.spec.gang) is not None:
        return plan_all(hosts, room, gang)
    return () if (only := plan(hosts, room)) is None else (only,)


async def _preemptible(unit: Unit) -> dict[str, list[_Found]]:
    """By node."""
    query = (
        select(LeaseRow, JobRow, NodeRow.gpus_out)
        .join(JobRow, JobRow.job_id == LeaseRow.job_id)
        .join(NodeRow, NodeRow.node_id == LeaseRow.node_id)
        .where(LeaseRow.spot, LeaseRow.state.in_(_STOPPABLE))
        .order_by(LeaseRow.lease_id)
    )
    found: dict[str, list[_Found]] = defaultdict(list)
    for lease, job, gpus_out in (await unit.session.execute(query)).all():
        if set(lease.gpu_uuids).intersection(gpus_out):
            continue  # its end would make nothing free
        if not is_protected(lease.started_at_ms, job.preemptions, unit.now_ms, unit.policy.spot_protected_ms):
            found[lease.node_id].append(_Found(lease, spec_of(job).resources))
    return found


def free_room(node: NodeSnapshot, asked: Resources) -> Room:
    inventory = node.offer.inventory
    return Room(
        units=len(node.free_units(asked)),
        cpu_millis=inventory.cpu_millis - node.cpu_millis_in_use,
        memory_bytes=inventory.memory_bytes - node.memory_in_use,
        disk_bytes=inventory.disk_bytes - node.disk_in_use,
    )


def _spot_lease(unit: Unit, found: _Found, asked: Resources) -> SpotLease:
    lease = found.lease
    ran_ms = 0 if lease.started_at_ms is None else unit.now_ms - lease.started_at_ms
    lost_ms = max(0, ran_ms - lease.checkpoint_useful_ms)
    return SpotLease(
        lease_id=lease.lease_id,
        room=room_of_lease(lease, found.resources, asked),
        lost=cost(lease.price_per_gpu_hour, lease.billable_gpus, lost_ms),
    )


def room_of_lease(lease: LeaseRow, resources: Resources, asked: Resources) -> Room:
    """What its end makes free for a job that asks for these; `resources`: what its own job asked for."""
    same_kind = bool(resources.gpus) == bool(asked.gpus)
    return Room(
        units=lease.billable_gpus if same_kind else 0,
        cpu_millis=lease.cpu_millis,
        memory_bytes=lease.memory_bytes,
        disk_bytes=lease.disk_bytes,
    )
