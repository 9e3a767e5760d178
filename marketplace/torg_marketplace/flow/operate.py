"""What the operator decides about nodes, and looks up about anything. Safe beside a running marketplace, which notices within seconds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy import inspect as inspection

from torg_marketplace.flow.rows import job_row, leases_of_job, live_leases
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.suspension import Cause, release, standing, suspend, suspensions_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.history import Move, replayed
from torg_marketplace.storage.audit_models import SlashRow
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseEventRow, LeaseRow, NodeEventRow, NodeRow
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, LeaseState
from torg_protocol.suspensions import decision_in_words, in_words

_EVENTS = 100  # newest, of what is inspected


async def suspend_node(
    unit: Unit, node_id: NodeId, *, because: str, stop: bool, cause: Cause = "operator"
) -> dict[str, Any]:
    """No new leases until `resume_node`; with `stop`, the running ones are asked to end with a checkpoint, and their jobs are queued again
    elsewhere. Safe to repeat: the first reason stays, which the answer says. Raises NotFound node_unknown, Invalid because_missing."""
    if not because.strip():
        raise Invalid("say why", code="because_missing", field="--because", hint="its owner reads it")
    node = await _node(unit, node_id)
    stood = await suspend(unit, node, cause, because)
    running = await live_leases(unit, node_id=node_id)
    if stop:
        for lease in running:
            if lease.state != LeaseState.STOPPING:
                await stop_lease(unit, lease, await job_row(unit, lease.job_id), EndReason.DRAINED)
    answer = _stands(node) | {"leases": [lease.lease_id for lease in running], "stopped": stop}
    return (
        answer
        if stood is None
        else answer | {"note": stays(stood.because, stood.since_ms, "node-resume, node-suspend")}
    )


async def resume_node(unit: Unit, node_id: NodeId, *, because: str) -> dict[str, Any]:
    """Takes back `suspend_node`, and no ban nor what proofs have shown: the answer says what still stands. Raises NotFound node_unknown;
    Conflict node_not_suspended, node_banned (the operator has not suspended it, it is banned or its proofs failed)."""
    node = await _node(unit, node_id)
    if standing(node, "operator") is None:
        raise _not_by_the_operator(node)
    await release(unit, node, "operator", because)
    return _stands(node) | left_after(node)


def _not_by_the_operator(node: NodeRow) -> Conflict:
    for cause, hint in _WAYS_OUT.items():
        if (stands := standing(node, cause)) is not None:
            message = f"the operator has not suspended this node; it is suspended {stands.in_words()}"
            return Conflict(message, code="node_banned", field="node", value=node.node_id, hint=hint)
    return Conflict("this node is not suspended", code="node_not_suspended", field="node", value=node.node_id)


def _stands(node: NodeRow) -> dict[str, Any]:
    return {"node": node.node_id, "state": node.state, "suspensions": node.suspensions}


def stays(because: str, since_ms: int, way: str) -> str:
    """Of something that the operator decides again as it is."""
    stands = decision_in_words("operator", because, since_ms)
    return f"nothing changed, your reason was not kept. It stands {stands}. To change the reason: {way}"


def left_after(node: NodeRow) -> dict[str, str]:
    """What somebody must know who has just taken one cause back."""
    left = suspensions_of(node)
    ways = " ".join(f"{_WAYS_OUT[each.by]}." for each in left if each.by in _WAYS_OUT)
    return {"note": f"it stays suspended {in_words(left)}. {ways}".rstrip()} if left else {}


_WAYS_OUT: dict[Any, str] = {
    "operator": "torg-marketplace node-resume takes that back",
    "ban": "torg-marketplace unban node takes that back",
    "proof": "torg-marketplace proof list, proof replay and proof lift decide about that",
}


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
            "suspensions": row.suspensions,
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
