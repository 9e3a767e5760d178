"""Time passes: silent nodes, unanswered grants, queue deadlines, leases that outstay.

The marketplace's own sleep proves nothing about anybody else: after a gap in its own pulse (restart, suspended machine) every
live lease gets a fresh grace. Unknown is not lost.
"""

from __future__ import annotations

from typing import Any, assert_never

from sqlalchemy import and_, or_, select

from torg_marketplace.flow.ending import end_lease, end_queued
from torg_marketplace.flow.one_by_one import one_by_one
from torg_marketplace.flow.rows import job_row, known_spec, live_leases, lock_attempt, node_row, spec_of
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules import leases as rules
from torg_marketplace.rules.declines import NO_ANSWER
from torg_marketplace.rules.leases import End, LeaseClock, StopIt
from torg_marketplace.storage.models import JobRow, LeaseRow, MarketRow, NodeRow
from torg_marketplace.storage.moves import MovedMeanwhile, set_liveness
from torg_marketplace.storage.webhook_models import DeliveryRow
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import Abandon
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, JobState, LeaseState, Liveness

_TIMES_OF_A_LEASE = (
    *("granted_at_ms", "started_at_ms", "useful_from_ms", "exited_at_ms", "left_at_ms", "stop_requested_at_ms"),
    *("reported_at_ms", "ended_at_ms", "verify_at_ms", "verify_deadline_ms"),
)


async def on_startup(market: Market) -> None:
    """Call once before serving: no node is connected yet, and every live lease gets a fresh grace."""
    async with market.transaction() as unit:
        pulse = await _pulse(unit)
        await _follow_the_clock_back(unit, rules.went_back_ms(pulse.awake_at_ms, unit.now_ms, market.policy))
        for node in await unit.session.scalars(select(NodeRow).where(NodeRow.connected)):
            node.connected = False
        await _refresh_grace(unit)
        pulse.awake_at_ms = unit.now_ms


async def sweep(market: Market) -> None:
    """Ends what time has ended. Safe to call at any rate; each lease and job is its own transaction, and one that fails is met again."""
    async with market.transaction() as unit:
        pulse = await _pulse(unit)
        back_ms = rules.went_back_ms(pulse.awake_at_ms, unit.now_ms, market.policy)
        await _follow_the_clock_back(unit, back_ms)
        if back_ms or rules.was_down(pulse.awake_at_ms, unit.now_ms, market.policy):
            await _refresh_grace(unit)
        pulse.awake_at_ms = unit.now_ms
        await _sweep_nodes(unit)
    async with market.reading() as unit:
        lease_ids = await _leases_due(unit)
    await one_by_one(lease_ids, lambda lease_id: _sweep_lease(market, lease_id))
    async with market.reading() as unit:  # a grant that nobody answered may just have gone back beyond its deadline
        overdue = select(JobRow.job_id).where(JobRow.state == JobState.QUEUED, JobRow.queue_deadline_ms <= unit.now_ms)
        job_ids = (await unit.session.scalars(overdue)).all()
    await one_by_one(job_ids, lambda job_id: _expire(market, job_id))


async def _pulse(unit: Unit) -> MarketRow:
    row = await unit.session.get(MarketRow, 1)
    if row is None:
        row = MarketRow(id=1, awake_at_ms=unit.now_ms)
        unit.session.add(row)
    return row


async def _refresh_grace(unit: Unit) -> None:
    for lease in await live_leases(unit):
        lease.grace_from_ms = unit.now_ms


async def _follow_the_clock_back(unit: Unit, by_ms: int) -> None:
    """What is under way keeps its distance to now: a lease would else have run for less than nothing, and a node that is silent would not
    be for as long as the clock was ahead."""
    if not by_ms:
        return
    for lease in await unit.session.scalars(select(LeaseRow).where(LeaseRow.decided_at_ms.is_(None))):
        _move_back(lease, by_ms, *_TIMES_OF_A_LEASE)
        lease.losses = [[at_ms - by_ms, lost_ms] for at_ms, lost_ms in lease.losses]
    for job in await unit.session.scalars(select(JobRow).where(JobRow.state == JobState.QUEUED)):
        _move_back(job, by_ms, "queued_at_ms", "queue_deadline_ms")
    for node in await unit.session.scalars(select(NodeRow).where(NodeRow.last_seen_ms > unit.now_ms)):
        _move_back(node, by_ms, "last_seen_ms", "connected_at_ms", "proof_due_ms")
        unit.touch(node.id)
    for delivery in await unit.session.scalars(select(DeliveryRow).where(DeliveryRow.state == "pending")):
        _move_back(delivery, by_ms, "next_try_at_ms")


def _move_back(row: LeaseRow | JobRow | NodeRow | DeliveryRow, by_ms: int, *columns: str) -> None:
    for name in columns:
        if at_ms := getattr(row, name):  # None and 0: not yet
            setattr(row, name, at_ms - by_ms)


async def _sweep_nodes(unit: Unit) -> None:
    policy = unit.policy
    silent = or_(
        and_(NodeRow.liveness == Liveness.ALIVE, NodeRow.last_seen_ms <= unit.now_ms - policy.unknown_after_ms),
        and_(NodeRow.liveness == Liveness.UNKNOWN, NodeRow.last_seen_ms <= unit.now_ms - policy.lost_after_ms),
    )
    for node in await unit.session.scalars(select(NodeRow).where(silent)):
        liveness = rules.liveness(unit.now_ms - node.last_seen_ms, unit.policy)
        if liveness not in (Liveness.ALIVE, node.liveness):  # only the node itself can make it alive again
            unit.touch(node.id)
            await set_liveness(unit.session, node, liveness, at_ms=unit.now_ms)


async def _sweep_lease(market: Market, lease_id: str) -> None:
    try:
        async with market.transaction() as unit:
            lease = await unit.session.get_one(LeaseRow, lease_id)
            if not await lock_attempt(unit, lease):
                return
            decision, job = await _due(unit, lease), await job_row(unit, lease.job_id)
            match decision:
                case None:
                    return
                case StopIt(reason):
                    await stop_lease(unit, lease, job, reason)
                case End(reason, detail):
                    await _end(unit, lease, job, reason, detail)
                case _:
                    assert_never(decision)
    except MovedMeanwhile:
        pass  # an event of the node was faster


async def _end(unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason, detail: str) -> None:
    if reason is EndReason.NODE_LOST:
        node = await node_row(unit, lease.node_id)
        if lease.started_at_ms is not None and lease.exited_at_ms is None:  # EXITED has said the total already
            # How long it ran as far as we know, for the part that nobody is billed for.
            lease.claimed_ms = max(lease.claimed_ms, node.last_seen_ms - lease.started_at_ms)
        if node.liveness == Liveness.ALIVE and node.last_seen_ms <= unit.now_ms - unit.policy.heartbeat_ms:
            await set_liveness(unit.session, node, Liveness.UNKNOWN, at_ms=unit.now_ms)
            unit.touch(node.id)
    await end_lease(unit, lease, job, reason, detail=detail, code=NO_ANSWER)
    unit.send(lease.node, Abandon(lease_id=lease.id))


async def _expire(market: Market, job_id: str) -> None:
    try:
        async with market.transaction() as unit:
            job = await job_row(unit, job_id)
            if job.state == JobState.QUEUED and job.queue_deadline_ms <= unit.now_ms:
                await end_queued(unit, job, EndReason.QUEUE_DEADLINE, job.waiting_for or "")
    except MovedMeanwhile:
        pass


_CLOCKS = (  # of all live leases, every second: so columns and not rows
    select(
        *(LeaseRow.lease_id, LeaseRow.job_id, LeaseRow.state, LeaseRow.granted_at_ms, LeaseRow.started_at_ms),
        *(LeaseRow.stop_requested_at_ms, LeaseRow.stop_reason, LeaseRow.acknowledged, LeaseRow.grace_from_ms),
        *(LeaseRow.max_duration_ms, NodeRow.last_seen_ms, JobRow.spec_digest),
    )
    .join(NodeRow, NodeRow.node_id == LeaseRow.node_id)
    .join(JobRow, JobRow.job_id == LeaseRow.job_id)
    .where(LeaseRow.state.in_(LIVE_LEASE_STATES))
    .order_by(LeaseRow.lease_id)
)


async def _leases_due(unit: Unit) -> list[str]:
    """At this look; whether they still are is decided with each."""
    found = []
    for row in (await unit.session.execute(_CLOCKS)).all():
        spec = known_spec(row.spec_digest) or spec_of(await job_row(unit, row.job_id))
        if _decision(unit, row, row.last_seen_ms, spec) is not None:
            found.append(row.lease_id)
    return found


async def _due(unit: Unit, lease: LeaseRow) -> End | StopIt | None:
    job, node = await job_row(unit, lease.job_id), await node_row(unit, lease.node_id)
    return _decision(unit, lease, node.last_seen_ms, spec_of(job))


def _decision(unit: Unit, lease: Any, node_seen_ms: int, spec: JobSpec) -> End | StopIt | None:
    """`lease`: its row, or a line of `_CLOCKS`."""
    clock = LeaseClock(
        state=LeaseState(lease.state),
        granted_ms=lease.granted_at_ms,
        started_ms=lease.started_at_ms,
        stop_requested_ms=lease.stop_requested_at_ms,
        stop_reason=EndReason(lease.stop_reason) if lease.stop_reason is not None else None,
        answered=lease.acknowledged > 0,
        grace_from_ms=lease.grace_from_ms,
        node_seen_ms=node_seen_ms,
        lease_grace_ms=spec.lease_grace,
        max_duration_ms=lease.max_duration_ms,
    )
    return rules.due(clock, unit.now_ms, unit.policy)
