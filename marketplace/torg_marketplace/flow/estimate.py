"""When a job would start: what the rule in `matching/estimate.py` needs, read from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import func, select

from torg_marketplace.flow.matching_pulse import matcher_away_ms
from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.estimate import History, Holding, PastLease, openings_ms
from torg_marketplace.matching.explain import Explanation
from torg_marketplace.matching.snapshot import Demand, shared_gpu
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow
from torg_protocol.api import StartEstimate
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES, JobState

_PAST_LEASES = 100
_HISTORY_FOR_MS = 30_000  # how long what was learned from past leases is good for
_NODES_LOOKED_AT = 200  # of the fitting ones, the cheapest


async def start_estimate(unit: Unit, engine: Engine, explanation: Explanation, demand: Demand) -> StartEstimate:
    history, basis = await _history(unit), list[str]()
    prepare_ms, starts, same_image = history.usual_preparation_ms(demand.spec.image)
    if prepare_ms is not None:
        basis.append(
            f"preparing: median of the last {starts} start(s) {'of this image' if same_image else 'of any image'}"
        )
    else:
        basis.append("preparing: nothing has started here yet, so nobody knows")
    if away_ms := await matcher_away_ms(unit):
        basis.insert(
            0, f"room: nothing has been matched for {away_ms // 1000} s; jobs are taken, and wait until that goes on"
        )
        return StartEstimate(room_expected_ms=None, room_latest_ms=None, prepare_ms=prepare_ms, basis=tuple(basis))
    if explanation.free.size:
        basis.insert(0, f"room: {explanation.free.size} node(s) are free")
        return StartEstimate(room_expected_ms=0, room_latest_ms=0, prepare_ms=prepare_ms, basis=tuple(basis))
    ahead = await _jobs_ahead(unit, demand.price_limit or 0)
    share, seen = history.usual_share
    fleet, now_ms = engine.fleet, unit.now_ms
    rows = sorted(explanation.live.tolist(), key=lambda row: fleet.price[row])[:_NODES_LOOKED_AT]
    held, spot_leases = await _held(unit, [fleet.node_id(row) for row in rows], may_preempt=not demand.spec.spot)
    expected = openings_ms(fleet, rows, demand, held, now_ms, share=share)
    latest = openings_ms(fleet, rows, demand, held, now_ms, share=1.0)
    room = f"room: {len(latest)} busy node(s) fit; latest: their leases take all of their max_duration"
    room += f"; expected: {share * 100:.0f} % of it, the median of the last {seen} lease(s)" if seen else ""
    room += (
        f"; {spot_leases} spot leases make room within {unit.policy.preempt_grace_ms // 1000} s" if spot_leases else ""
    )
    room += f"; {ahead} waiting job(s) with the same or a higher bid go first" if ahead else ""
    last = ahead + demand.spec.nodes_at_once - 1  # in order of when they have room
    return StartEstimate(
        room_expected_ms=expected[last] - now_ms if last < len(expected) else None,
        room_latest_ms=latest[last] - now_ms if last < len(latest) else None,
        prepare_ms=prepare_ms,
        jobs_ahead=ahead,
        basis=(room, *basis),
    )


async def _jobs_ahead(unit: Unit, bid: int) -> int:
    query = select(func.count()).where(JobRow.state == JobState.QUEUED, JobRow.price_ceiling >= bid)
    return await unit.session.scalar(query) or 0


async def _held(unit: Unit, nodes: Sequence[NodeId], *, may_preempt: bool) -> tuple[dict[NodeId, list[Holding]], int]:
    """By node; and how many of them are spot leases that make room for the job."""
    units = (
        await unit.session.execute(
            select(AllocationRow.lease_id, AllocationRow.node_id, AllocationRow.unit).where(
                AllocationRow.node_id.in_(nodes)
            )
        )
    ).all()
    gpus: dict[str, int] = defaultdict(int)
    slots: dict[str, int] = defaultdict(int)
    sharing: dict[tuple[str, int], list[str]] = defaultdict(list)
    for lease_id, node_id, name in units:
        if "/" in name:
            sharing[node_id, shared_gpu(name)].append(lease_id)
        else:
            (gpus if name.startswith("gpu:") else slots)[lease_id] += 1
    columns = (
        LeaseRow.lease_id,
        LeaseRow.node_id,
        func.coalesce(LeaseRow.started_at_ms, LeaseRow.granted_at_ms),
        LeaseRow.max_duration_ms,
        LeaseRow.cpu_millis,
        LeaseRow.memory_bytes,
        LeaseRow.disk_bytes,
        LeaseRow.spot,
    )
    query = select(*columns).where(LeaseRow.node_id.in_(nodes), LeaseRow.state.in_(LIVE_LEASE_STATES))
    found: dict[NodeId, list[Holding]] = defaultdict(list)
    spot_leases, live = 0, (await unit.session.execute(query)).all()
    ends_ms = {row[0]: row[2] + row[3] for row in live}
    for members in sharing.values():  # a GPU that is shared is free with the last of its leases
        gpus[max(members, key=lambda lease_id: ends_ms.get(lease_id, 0))] += 1
    for lease_id, node_id, since_ms, max_ms, cpus, memory, disk, spot in live:
        if spot and may_preempt:
            since_ms, max_ms, spot_leases = unit.now_ms, unit.policy.preempt_grace_ms, spot_leases + 1
        holding = Holding(since_ms, max_ms, gpus[lease_id], slots[lease_id], cpus, memory, disk)
        found[NodeId(node_id)].append(holding)
    return found, spot_leases


async def _history(unit: Unit) -> History:
    """Kept for a while: every quote asks for it."""
    book = unit.market.book
    if book.history is not None and 0 <= unit.now_ms - book.history_at_ms < _HISTORY_FOR_MS:
        return book.history
    ran_until = func.coalesce(LeaseRow.exited_at_ms, LeaseRow.ended_at_ms)
    query = (
        select(JobRow.spec, LeaseRow.granted_at_ms, LeaseRow.started_at_ms, ran_until, LeaseRow.max_duration_ms)
        .join(JobRow, JobRow.job_id == LeaseRow.job_id)
        .where(LeaseRow.ended_at_ms.is_not(None))
        .order_by(LeaseRow.lease_id.desc())
        .limit(_PAST_LEASES)
    )
    leases = [
        PastLease(
            image=str(spec["image"]),
            prepared_ms=None if started_ms is None else started_ms - granted_ms,
            ran_ms=None if started_ms is None else max(until_ms - started_ms, 0),
            max_duration_ms=max_ms,
        )
        for spec, granted_ms, started_ms, until_ms, max_ms in (await unit.session.execute(query)).all()
    ]
    book.history, book.history_at_ms = History(leases), unit.now_ms
    return book.history
