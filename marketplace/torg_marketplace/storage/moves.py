"""The one writer of every `state` column.

A move is checked against the table of legal moves and leaves an event row. Two deciders cannot both win: writers take turns (`engine.py`), so
that a row which this transaction has loaded still is as it was, and its moves are written with whatever else changes of it; a row that was
loaded elsewhere is moved by an UPDATE that still expects the state it was decided on. The row object given is up to date afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import CursorResult, inspect, update
from sqlalchemy.orm.attributes import set_committed_value

from torg_marketplace.storage.audit_models import SlashRow
from torg_marketplace.storage.events import add_job_event, add_node_event, which
from torg_marketplace.storage.models import JobRow, LeaseRow, NodeRow
from torg_marketplace.storage.sessions import KeepingAsyncSession
from torg_protocol.errors import Conflict
from torg_protocol.ids import NodeId
from torg_protocol.states import (
    JOB_MOVES,
    LEASE_MOVES,
    LIVE_LEASE_STATES,
    NODE_MOVES,
    OPEN_JOB_STATES,
    SLASH_MOVES,
    EndReason,
    JobState,
    LeaseState,
    Liveness,
    NodeState,
    SlashState,
    check_move,
)


class MovedMeanwhile(Conflict):
    """Somebody else moved it first. Whoever asked looks again, or drops what it wanted."""

    default_code = "moved_meanwhile"


async def move_job(
    session: KeepingAsyncSession,
    job: JobRow,
    to: JobState,
    *,
    at_ms: int,
    reason: EndReason | None = None,
    detail: str = "",
) -> None:
    """Raises IllegalMove or MovedMeanwhile. `reason` and `detail` say why it ended or was queued again."""
    current = JobState(job.state)
    check_move(JOB_MOVES, current, to)
    values: dict[str, Any] = {"state": to, "reason": reason, "detail": detail}
    if to not in OPEN_JOB_STATES:
        values["ended_at_ms"] = at_ms
        values["waiting_for"] = None
    elif to is JobState.QUEUED:
        values["queued_at_ms"] = at_ms
    await _write(session, job, JobRow.state, current, values)
    data = {"state": to, "from": current, "reason": reason, "detail": detail}
    add_job_event(session, job_id=job.id, kind="job", data=data, at_ms=at_ms)


async def move_lease(
    session: KeepingAsyncSession,
    lease: LeaseRow,
    job: JobRow,
    to: LeaseState,
    *,
    at_ms: int,
    reason: EndReason | None = None,
    detail: str = "",
) -> None:
    """Raises IllegalMove or MovedMeanwhile. Leaving the live states sets `ended_at_ms`."""
    current = LeaseState(lease.state)
    check_move(LEASE_MOVES, current, to)
    values: dict[str, Any] = {"state": to}
    if reason is not None:
        values |= {"reason": reason, "detail": detail[:2_000]}
    if current in LIVE_LEASE_STATES and to not in LIVE_LEASE_STATES:
        values["ended_at_ms"] = at_ms
    await _write(session, lease, LeaseRow.state, current, values)
    data = {"state": to, "from": current, "node": lease.node_id, **which(lease)}
    if reason is not None:
        data |= {"reason": reason, "detail": detail[:2_000]}
    add_job_event(session, job_id=job.id, lease_id=lease.id, kind="lease", data=data, at_ms=at_ms)


async def move_node(
    session: KeepingAsyncSession, node: NodeRow, to: NodeState, *, at_ms: int, detail: str = ""
) -> None:
    current = NodeState(node.state)
    check_move(NODE_MOVES, current, to)
    await _write(session, node, NodeRow.state, current, {"state": to})
    add_node_event(session, node_id=node.id, data={"state": to, "from": current, "detail": detail}, at_ms=at_ms)


async def move_slash(
    session: KeepingAsyncSession, slash: SlashRow, to: SlashState, *, at_ms: int, detail: str = ""
) -> None:
    current = SlashState(slash.state)
    check_move(SLASH_MOVES, current, to)
    values = {"state": to, "moved_at_ms": at_ms, "sent_at_ms": 0, "detail": detail[:2_000]}
    await _write(session, slash, SlashRow.state, current, values)
    data = {"slash": to, "from": current, "lease_id": slash.lease_id, "amount": slash.amount, "detail": detail[:2_000]}
    add_node_event(session, node_id=NodeId(slash.node_id), data=data, at_ms=at_ms)


async def set_liveness(session: KeepingAsyncSession, node: NodeRow, to: Liveness, *, at_ms: int) -> None:
    """Any liveness may follow any other; staying is no event."""
    current = Liveness(node.liveness)
    if current is to:
        return
    await _write(session, node, NodeRow.liveness, current, {"liveness": to})
    add_node_event(session, node_id=node.id, data={"liveness": to, "from": current}, at_ms=at_ms)


async def revive_nodes(session: KeepingAsyncSession, silent: Mapping[NodeId, Liveness], *, at_ms: int) -> None:
    """`set_liveness` to ALIVE of many at once, with what each was before: after an outage a whole fleet comes back within seconds."""
    await session.execute(
        update(NodeRow)
        .where(NodeRow.node_id.in_(silent))
        .values(liveness=Liveness.ALIVE)
        .execution_options(synchronize_session=False)
    )
    for node_id, before in silent.items():
        add_node_event(session, node_id=node_id, data={"liveness": Liveness.ALIVE, "from": before}, at_ms=at_ms)


async def _write(session: KeepingAsyncSession, row: Any, column: Any, current: StrEnum, values: dict[str, Any]) -> None:
    """`column`: what has to be `current` still."""
    if row in session:
        for name, value in values.items():
            setattr(row, name, value.value if isinstance(value, StrEnum) else value)
        return
    is_row = (key == getattr(row, key.key) for key in inspect(type(row)).primary_key)
    with session.no_autoflush:
        result = await session.execute(
            update(type(row))
            .where(*is_row, column == current)
            .values(**values)
            .execution_options(synchronize_session=False)
        )
    if not isinstance(result, CursorResult) or result.rowcount != 1:
        raise MovedMeanwhile(f"{type(row).__name__} was moved by somebody else meanwhile", to=str(values))
    for name, value in values.items():
        set_committed_value(row, name, value.value if isinstance(value, StrEnum) else value)
