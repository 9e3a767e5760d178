"""What the operator decides about nodes, and looks up about anything. Safe beside a running marketplace, which notices within seconds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy import inspect as inspection

from torg_marketplace.flow.rows import job_row, leases_of_job, live_leases
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.history import Move, replayed
from torg_marketplace.storage.audit_models import SlashRow
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.case_models import BanRow
from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseEventRow, LeaseRow, NodeEventRow, NodeRow
from torg_marketplace.storage.moves import move_node
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, LeaseState, NodeState

_EVENTS = 100  # newest, of what is inspected


async def suspend_node(unit: Unit, node_id: NodeId, *, because: str, stop: bool) -> dict[str, Any]:
    """No new leases until `resume_node`; with `stop`, the running ones are asked to end with a checkpoint, and their jobs are queued again
    elsewhere. Safe to repeat. Raises NotFound node_unknown, Invalid because_missing."""
    if not because.strip():
        raise Invalid("say why", code="because_missing", field="--because", hint="its owner will ask")
    node = await _node(unit, node_id)
    if node.state != NodeState.SUSPENDED:
        await move_node(
            unit.session, node, NodeState.SUSPENDED, at_ms=unit.now_ms, detail=f"by the operator: {because}"
        )
    running = await live_leases(unit, node_id=node_id)
    if stop:
        for lease in running:
            if lease.state != LeaseState.STOPPING:
                await stop_lease(unit, lease, await job_row(unit, lease.job_id), EndReason.DRAINED)
    unit.touch(node_id)
    return {"node": node_id, "state": node.state, "leases": [lease.lease_id for lease in running], "stopped": stop}


async def resume_node(unit: Unit, node_id: NodeId, *, because: str) -> dict[str, Any]:
    """Takes back `suspend_node`. Raises NotFound node_unknown; Conflict node_not_suspended, node_banned (by a proof of its hardware that
    failed: `torg-marketplace proof lift` decides about that)."""
    node = await _node(unit, node_id)
    if node.state != NodeState.SUSPENDED:
        raise Conflict("this node is not suspended", code="node_not_suspended", field="node", value=node_id)
    if await unit.session.get(BanRow, ("node", node_id)) is not None:
        raise Conflict(
            "this node is banned",
            code="node_banned",
            field="node",
            value=node_id,
            hint="torg-marketplace unban node lifts it",
        )
    if not await is_suspended_by_operator(unit, node_id):
        raise Conflict(
            "a proof of its hardware failed: the operator did not suspend it",
            code="node_banned",
            field="node",
            value=node_id,
            hint="torg-marketplace proof list, proof replay and proof lift",
        )
    await move_node(unit.session, node, NodeState.ACTIVE, at_ms=unit.now_ms, detail=f"by the operator: {because}")
    unit.touch(node_id)
    unit.wake("match")
    return {"node": node_id, "state": node.state}


async def is_suspended_by_operator(unit: Unit, node_id: NodeId) -> bool:
    """Of a suspended node: by a person's decision, a ban too, rather than by a proof of its hardware."""
    newest = await _newest(unit, NodeEventRow, NodeEventRow.node_id == node_id)
    moves = [event["data"] for event in newest if event["data"].get("state") == NodeState.SUSPENDED]
    return bool(moves) and str(moves[0].get("detail", "")).startswith("by the operator: ")


async def every_node(unit: Unit) -> list[dict[str, Any]]:
    """Also those that nobody is offered: suspended, lost, long gone. Newest heard of first."""
    live = (
        select(LeaseRow.node_id, func.count()).where(LeaseRow.state.in_(LIVE_LEASE_STATES)).group_by(LeaseRow.node_id)
    )
    leases = {node_id: int(count) for node_id, count in await unit.session.execute(live)}
    rows = await unit.session.scalars(select(NodeRow).order_by(NodeRow.last_seen_ms.desc(), NodeRow.node_id))
    return [
        {
            "node": row.node_id,
            "state": row.state,
            "liveness": row.liveness,
            "connected": row.connected,
            "last_seen_ms": row.last_seen_ms,
            "live_leases": leases.get(row.node_id, 0),
            "version": row.node_version,
            "protocol_version": row.protocol_version,
        }
        for row in rows
    ]


async def inspect_anything(unit: Unit, key: str) -> dict[str, Any]:
    """Everything that is known of a job, a lease or a node, with its newest events. Raises NotFound nothing_known."""
    if (job := await unit.session.get(JobRow, key)) is not None:
        leases = [_columns(lease) for lease in await leases_of_job(unit, key)]
        events = await _newest(unit, JobEventRow, JobEventRow.job_id == key)
        return {"job": _columns(job), "leases": leases, "events": events}
    if (lease := await unit.session.get(LeaseRow, key)) is not None:
        said = select(LeaseEventRow).where(LeaseEventRow.lease_id == key).order_by(LeaseEventRow.sequence.desc())
        rows = await unit.session.scalars(said.limit(_EVENTS))
        events = await _newest(unit, JobEventRow, JobEventRow.lease_id == key)
        return {"lease": _columns(lease), "said": [_columns(row) for row in rows], "events": events}
    if (node := await unit.session.get(NodeRow, key)) is not None:
        running = [_columns(lease) for lease in await live_leases(unit, node_id=NodeId(key))]
        return {
            "node": _columns(node),
            "live_leases": running,
            "events": await _newest(unit, NodeEventRow, NodeEventRow.node_id == key),
        }
    raise NotFound(
        "no such job, lease or node",
        code="nothing_known",
        field="id",
        value=key,
        hint="the whole id: job_..., lease_..., or a node's address as torg-marketplace nodes shows it",
    )


async def newest_slashes(unit: Unit) -> list[dict[str, Any]]:
    query = select(SlashRow).order_by(SlashRow.slash_id.desc()).limit(_EVENTS)
    return [_columns(row) for row in await unit.session.scalars(query)]


async def replay_events(unit: Unit, job_id: str) -> dict[str, Any]:
    """A job's life again from its events alone: each state with how long it lasted, and `problems` where an event does not follow from
    the one before, is no legal move, or the end is not what is stored. Raises NotFound job_unknown; `pruned` when its events are gone."""
    job = await unit.session.get(JobRow, job_id)
    if job is None:
        raise NotFound("no such job", code="job_unknown", field="job", value=job_id)
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.kind.in_(["job", "lease"]))
    rows = (await unit.session.scalars(query.order_by(JobEventRow.id))).all()
    moves = [Move(row.lease_id or job_id, row.data.get("from"), row.data["state"], row.at_ms) for row in rows]
    stored = {job_id: job.state} | {lease.lease_id: lease.state for lease in await leases_of_job(unit, job_id)}
    timeline, problems = replayed(moves, stored if moves else {})
    return {"job_id": job_id, "timeline": timeline, "stored": stored, "problems": problems, "pruned": not moves}


async def _node(unit: Unit, node_id: NodeId) -> NodeRow:
    if (node := await unit.session.get(NodeRow, node_id)) is not None:
        return node
    hint = "the whole address: torg-marketplace nodes lists them all"
    raise NotFound("no such node here", code="node_unknown", field="node", value=node_id, hint=hint)


async def _newest(unit: Unit, table: Any, condition: Any) -> list[dict[str, Any]]:
    """Newest first."""
    rows = await unit.session.scalars(select(table).where(condition).order_by(table.id.desc()).limit(_EVENTS))
    return [_columns(row) for row in rows]


def _columns(row: Base) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspection(row).mapper.column_attrs}
