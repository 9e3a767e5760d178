"""Rows of the event streams: one for each state move, and what the node tells about a running lease.

Events of jobs are collected while a transaction runs and written by one statement at its end, in the order in which they happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseRow, NodeEventRow
from torg_protocol.event_kinds import WrittenKind
from torg_protocol.ids import JobId, LeaseId, NodeId

_JOB_EVENTS = JobEventRow.metadata.tables[JobEventRow.__tablename__]  # the table itself: rows without objects
_INSERT_JOB_EVENTS = insert(_JOB_EVENTS)
_COLLECTED = "torg_events"


def add_job_event(
    session: AsyncSession,
    *,
    job_id: JobId,
    kind: WrittenKind,
    data: dict[str, Any],
    at_ms: int,
    lease_id: LeaseId | None = None,
) -> None:
    collected(session).append({"job_id": job_id, "lease_id": lease_id, "at_ms": at_ms, "kind": kind, "data": data})


def collected(session: AsyncSession) -> list[dict[str, Any]]:
    """Events of jobs that are not written yet. Cut it back to undo some."""
    events: list[dict[str, Any]] = session.info.setdefault(_COLLECTED, [])
    return events


async def write_collected(session: AsyncSession) -> None:
    """Call before every commit, and before reading events in the transaction that adds some."""
    if events := collected(session):
        await session.flush()  # the jobs that they are of
        await session.execute(_INSERT_JOB_EVENTS, events)
        events.clear()


def add_job_born(session: AsyncSession, job: JobRow, *, at_ms: int) -> None:
    add_job_event(session, job_id=job.id, kind="job", data={"state": job.state, "from": None}, at_ms=at_ms)


def add_lease_born(session: AsyncSession, lease: LeaseRow, *, at_ms: int) -> None:
    data = {"state": lease.state, "from": None, "node": lease.node_id, **which(lease)}
    add_job_event(session, job_id=JobId(lease.job_id), lease_id=lease.id, kind="lease", data=data, at_ms=at_ms)


def which(lease: LeaseRow) -> dict[str, int]:
    """The attempt, and of a gang the rank."""
    return {"attempt": lease.attempt} | ({"rank": lease.rank} if lease.size > 1 else {})


def add_node_event(session: AsyncSession, *, node_id: NodeId, data: dict[str, Any], at_ms: int) -> None:
    session.add(NodeEventRow(node_id=node_id, at_ms=at_ms, data=data))


async def remove_events(session: AsyncSession, jobs: Sequence[str], *which: ColumnElement[bool]) -> int:
    """Deletes events of these jobs; how many. Their rows then say how far, for those who read on from before."""
    for column, newest in ((JobRow.removed_event_id, JobEventRow.id), (JobRow.removed_until_ms, JobEventRow.at_ms)):
        last = select(func.max(newest)).where(JobEventRow.job_id == JobRow.job_id, *which).scalar_subquery()
        marked = update(JobRow).where(JobRow.job_id.in_(jobs), last > column).values({column: last})
        await session.execute(marked.execution_options(synchronize_session=False))
    doomed = delete(JobEventRow).where(JobEventRow.job_id.in_(jobs), *which)
    result = await session.execute(doomed.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0


async def prune_events(session: AsyncSession, lease: LeaseRow, kind: WrittenKind, keep: int) -> None:
    """Deletes all but the newest `keep` events of one kind of a lease."""
    await write_collected(session)
    mine = (JobEventRow.lease_id == lease.lease_id, JobEventRow.kind == kind)
    oldest_kept = await session.scalar(
        select(JobEventRow.id).where(*mine).order_by(JobEventRow.id.desc()).offset(keep - 1).limit(1)
    )
    if oldest_kept is not None:
        await remove_events(session, [lease.job_id], *mine, JobEventRow.id < oldest_kept)
