"""Rows of the event streams: one for each state move, and what the node tells about a running lease.

Events of jobs are collected while a transaction runs and written by one statement at its end, in the order in which they happened.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseRow, NodeEventRow
from torg_protocol.ids import JobId, LeaseId, NodeId

_JOB_EVENTS = JobEventRow.metadata.tables[JobEventRow.__tablename__]  # the table itself: rows without objects
_INSERT_JOB_EVENTS = insert(_JOB_EVENTS)
_COLLECTED = "torg_events"
EventKind = Literal["job", "lease", "task", "preparing", "progress", "ports", "checkpoint", "volume", "log", "receipt"]


def add_job_event(
    session: AsyncSession,
    *,
    job_id: JobId,
    kind: EventKind,
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


async def prune_events(session: AsyncSession, lease_id: LeaseId, kind: EventKind, keep: int) -> None:
    """Deletes all but the newest `keep` events of one kind of a lease."""
    await write_collected(session)
    mine = (JobEventRow.lease_id == lease_id, JobEventRow.kind == kind)
    oldest_kept = await session.scalar(
        select(JobEventRow.id).where(*mine).order_by(JobEventRow.id.desc()).offset(keep - 1).limit(1)
    )
    if oldest_kept is not None:
        await session.execute(delete(JobEventRow).where(*mine, JobEventRow.id < oldest_kept))
