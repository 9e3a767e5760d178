"""What is kept how long. Money, receipts, states and their moves stay for good; what only helps while people still look goes.

Of a job that was closed `keep_history_ms` ago: its live log, its progress, and what nodes said about its leases word for word. Of a node: its
history. Of an account: names of data, and volumes, that no job uses any more. The whole log is a blob of the report, whose life is the blob store's matter.
"""

from __future__ import annotations

from sqlalchemy import CursorResult, Delete, delete, exists, select

from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.events import EventKind
from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseEventRow, LeaseRow, NodeEventRow
from torg_marketplace.storage.volume_models import JobVolumeRow, VolumeRow

_CHATTER: tuple[EventKind, ...] = ("log", "progress", "preparing")
_JOBS_AT_ONCE = 200  # of one transaction: writers wait for it


async def forget_history(market: Market) -> int:
    """Deletes what is due, in small transactions; returns how many rows. Safe to call at any rate."""
    if not market.policy.keep_history_ms:
        return 0
    total = 0
    while deleted := await _forget_some(market):
        total += deleted
    return total


async def forget_unused(market: Market) -> int:
    """Takes names of data and volumes away that no job has used for `keep_unused_ms`; their blobs go as garbage does. Returns how many."""
    if not market.policy.keep_unused_ms:
        return 0
    async with market.transaction() as unit:
        before_ms = unit.now_ms - market.policy.keep_unused_ms
        is_used = exists().where(
            JobVolumeRow.account == VolumeRow.account,
            JobVolumeRow.name == VolumeRow.name,
            JobVolumeRow.job_id == JobRow.job_id,
            JobRow.closed_at_ms.is_(None),
        )
        names = await _delete(unit, delete(DataRow).where(DataRow.used_at_ms < before_ms))
        return names + await _delete(unit, delete(VolumeRow).where(VolumeRow.used_at_ms < before_ms, ~is_used))


async def _forget_some(market: Market) -> int:
    async with market.transaction() as unit:
        before_ms = unit.now_ms - market.policy.keep_history_ms
        is_over = JobRow.closed_at_ms < before_ms
        talked = select(JobEventRow.job_id).join(JobRow, JobRow.job_id == JobEventRow.job_id)
        talked = talked.where(JobEventRow.kind.in_(_CHATTER), is_over).distinct().limit(_JOBS_AT_ONCE)
        jobs = (await unit.session.scalars(talked)).all()
        said = select(LeaseEventRow.lease_id).join(LeaseRow, LeaseRow.lease_id == LeaseEventRow.lease_id)
        said = said.join(JobRow, JobRow.job_id == LeaseRow.job_id).where(is_over).distinct().limit(_JOBS_AT_ONCE)
        leases = (await unit.session.scalars(said)).all()
        deleted = await _delete(unit, delete(NodeEventRow).where(NodeEventRow.at_ms < before_ms))
        if jobs:
            chatter = delete(JobEventRow).where(JobEventRow.job_id.in_(jobs), JobEventRow.kind.in_(_CHATTER))
            deleted += await _delete(unit, chatter)
        if leases:
            deleted += await _delete(unit, delete(LeaseEventRow).where(LeaseEventRow.lease_id.in_(leases)))
        return deleted


async def _delete(unit: Unit, statement: Delete) -> int:
    result = await unit.session.execute(statement.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0
