"""Rows of the event streams: one for each state move, and what the node tells about a running lease."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseRow, NodeEventRow
from torg_protocol.ids import JobId, LeaseId, NodeId

EventKind = Literal["job", "lease", "task", "preparing", "progress", "checkpoint", "log", "receipt"]


def add_job_event(
    session: AsyncSession,
    *,
    job_id: JobId,
    kind: EventKind,
    data: dict[str, Any],
    at_ms: int,
    lease_id: LeaseId | None = None,
) -> None:
    session.add(JobEventRow(job_id=job_id, lease_id=lease_id, at_ms=at_ms, kind=kind, data=data))


def add_job_born(session: AsyncSession, job: JobRow, *, at_ms: int) -> None:
    add_job_event(session, job_id=job.id, kind="job", data={"state": job.state, "from": None}, at_ms=at_ms)


def add_lease_born(session: AsyncSession, lease: LeaseRow, *, at_ms: int) -> None:
    data = {"state": lease.state, "from": None, "node": lease.node_id, "attempt": lease.attempt}
    add_job_event(session, job_id=JobId(lease.job_id), lease_id=lease.id, kind="lease", data=data, at_ms=at_ms)


def add_node_event(session: AsyncSession, *, node_id: NodeId, data: dict[str, Any], at_ms: int) -> None:
    session.add(NodeEventRow(node_id=node_id, at_ms=at_ms, data=data))


async def prune_events(session: AsyncSession, lease_id: LeaseId, kind: EventKind, keep: int) -> None:
    """Deletes all but the newest `keep` events of one kind of a lease."""
    await session.flush()
    mine = (JobEventRow.lease_id == lease_id, JobEventRow.kind == kind)
    oldest_kept = await session.scalar(
        select(JobEventRow.id).where(*mine).order_by(JobEventRow.id.desc()).offset(keep - 1).limit(1)
    )
    if oldest_kept is not None:
        await session.execute(delete(JobEventRow).where(*mine, JobEventRow.id < oldest_kept))
