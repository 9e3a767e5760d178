"""Rows of the event streams: one for each state move, and what the node tells about a running lease.

They are written at the end of their transaction, in the order in which they happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, func, select, update

from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseRow, NodeEventRow
from torg_marketplace.storage.sessions import KeepingAsyncSession
from torg_protocol.event_kinds import WrittenKind
from torg_protocol.ids import JobId, LeaseId, NodeId


def add_job_event(
    session: KeepingAsyncSession,
    *,
    job_id: JobId,
    kind: WrittenKind,
    data: dict[str, Any],
    at_ms: int,
    lease_id: LeaseId | None = None,
) -> None:
    session.write(JobEventRow, job_id=job_id, lease_id=lease_id, at_ms=at_ms, kind=kind, data=data)


def add_job_born(session: KeepingAsyncSession, job: JobRow, *, at_ms: int) -> None:
    add_job_event(session, job_id=job.id, kind="job", data={"state": job.state, "from": None}, at_ms=at_ms)


def add_lease_born(session: KeepingAsyncSession, lease: LeaseRow, *, at_ms: int) -> None:
    data = {"state": lease.state, "from": None, "node": lease.node_id, **which(lease)}
    add_job_event(session, job_id=JobId(lease.job_id), lease_id=lease.id, kind="lease", data=data, at_ms=at_ms)


def which(lease: LeaseRow) -> dict[str, int]:
    """The attempt, and of a gang the rank."""
    return {"attempt": lease.attempt} | ({"rank": lease.rank} if lease.size > 1 else {})


def add_node_event(session: KeepingAsyncSession, *, node_id: NodeId, data: dict[str, Any], at_ms: int) -> None:
    session.write(NodeEventRow, node_id=node_id, at_ms=at_ms, data=data)


async def remove_events(session: KeepingAsyncSession, jobs: Sequence[str], *which: ColumnElement[bool]) -> int:
    """Deletes events of these jobs; how many. Their rows then say how far, for those who read on from before."""
    for column, newest in ((JobRow.removed_event_id, JobEventRow.id), (JobRow.removed_until_ms, JobEventRow.at_ms)):
        last = select(func.max(newest)).where(JobEventRow.job_id == JobRow.job_id, *which).scalar_subquery()
        marked = update(JobRow).where(JobRow.job_id.in_(jobs), last > column).values({column: last})
        await session.execute(marked.execution_options(synchronize_session=False))
    doomed = delete(JobEventRow).where(JobEventRow.job_id.in_(jobs), *which)
    result = await session.execute(doomed.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0


async def prune_events(session: KeepingAsyncSession, lease: LeaseRow, kind: WrittenKind, keep: int) -> None:
    """Deletes all but the newest `keep` events of one kind of a lease."""
    mine = (JobEventRow.lease_id == lease.lease_id, JobEventRow.kind == kind)
    oldest_kept = await session.scalar(
        select(JobEventRow.id).where(*mine).order_by(JobEventRow.id.desc()).offset(keep - 1).limit(1)
    )
    if oldest_kept is not None:
        await remove_events(session, [lease.job_id], *mine, JobEventRow.id < oldest_kept)
