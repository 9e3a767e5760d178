"""Erase: an account's data leaves the marketplace: specs, logs, events, blobs, names. What money rests on stays.

Ledger, holds, caps, usage records and receipts stay: they are signed, both sides can be asked about them for years, and books from which
rows vanish prove nothing. They name parties by public keys only. Two passes: blobs that nobody else has leave the store, then the rows go
in one transaction. Killed in between, it is repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, delete, or_, select, update
from sqlalchemy.orm import aliased

from torg_marketplace.flow.leaving import begin_leaving, forget_bytes
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.account_models import ApiKeyRow
from torg_marketplace.storage.audit_models import ReplayAnswerRow, ReplayCheckRow
from torg_marketplace.storage.case_models import AbuseReportRow, DisputeRow
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.erasure import empty_log, erasing
from torg_marketplace.storage.events import remove_events
from torg_marketplace.storage.models import (
    BlobUploadRow,
    BlobUseRow,
    IdempotencyRow,
    JobRow,
    LeaseEventRow,
    LeaseRow,
)
from torg_marketplace.storage.volume_models import JobVolumeRow, VolumeRow
from torg_marketplace.storage.webhook_models import DeliveryRow, WebhookRow
from torg_protocol.cases import ErasureView
from torg_protocol.errors import Conflict
from torg_protocol.ids import AccountId, Digest
from torg_protocol.jobspec import load_job_spec

log = logging.getLogger(__name__)
ERASED = "erased"
_BLANK = load_job_spec({"version": 1, "name": ERASED, "command": ["true"]})


async def erase_account(market: Market, account: AccountId) -> ErasureView:
    """Deletes all that this account brought or its jobs made. Safe to repeat.

    Raises Conflict jobs_open (jobs run, or are not decided), dispute_open.
    """
    async with market.reading() as unit:
        await _check_over(unit, account)
        digests = await _blobs_of(unit, account)
        runners = await _runners(unit, account)
    digests |= {piece.digest for digest in digests for piece in await market.blobs.pieces_of(digest)}
    async with market.reading() as unit:
        kept, neighbours = await _others(unit, account, digests, runners)
    kept |= {piece.digest for digest in neighbours for piece in await market.blobs.pieces_of(digest)}
    async with market.transaction() as unit:  # somebody may have sent one of them since
        mine = digests - kept
        mine -= await _sent_by_others(unit, account, mine, runners)
        await begin_leaving(unit, mine)
    await forget_bytes(market, mine)
    async with market.transaction() as unit:
        await erasing(unit.session)
        await _check_over(unit, account)
        await unit.session.execute(delete(BlobUploadRow).where(BlobUploadRow.digest.in_(mine)))
        jobs = await _blank_jobs(unit, account)
        rows = await _delete_rows(unit, account, jobs)
    async with market.sessions() as session:
        await empty_log(session)
    log.warning("the data of account %s was erased: %s jobs, %s blobs, %s rows", account, len(jobs), len(mine), rows)
    return ErasureView(account=account, jobs=len(jobs), blobs=len(mine), rows=rows)


def _is_of(account: AccountId) -> ColumnElement[bool]:
    """Its jobs, and replays of their segments: those have its files too."""
    checked = aliased(JobRow)
    own = select(checked.job_id).where(checked.client == account)
    return or_(JobRow.client == account, and_(JobRow.checks_job.is_not(None), JobRow.checks_job.in_(own)))


async def _check_over(unit: Unit, account: AccountId) -> None:
    query = select(JobRow.job_id).where(_is_of(account), JobRow.closed_at_ms.is_(None))
    if running := (await unit.session.scalars(query)).all():
        raise Conflict(
            f"{len(running)} jobs are not over",
            code="jobs_open",
            field="account",
            value=account,
            hint=f"wait for them or cancel them first: {', '.join(running[:3])}",
        )
    disputes = select(DisputeRow.dispute_id).where(DisputeRow.client == account, DisputeRow.state == "open")
    if waiting := (await unit.session.scalars(disputes)).first():
        raise Conflict(
            "a dispute is not decided: its evidence would go",
            code="dispute_open",
            field="account",
            value=account,
            hint=f"wait for the decision about {waiting}",
        )


async def _blobs_of(unit: Unit, account: AccountId) -> set[Digest]:
    used = select(BlobUseRow.digest).join(JobRow, JobRow.job_id == BlobUseRow.job_id).where(_is_of(account))
    sent = select(BlobUploadRow.digest).where(BlobUploadRow.account == account)
    return {Digest(digest) for query in (used, sent) for digest in await unit.session.scalars(query)}


async def _runners(unit: Unit, account: AccountId) -> set[str]:
    """Nodes that ran its jobs: they sent what the jobs made. We ourselves have altered some of it to see who executes segments."""
    query = select(LeaseRow.node_id).join(JobRow, JobRow.job_id == LeaseRow.job_id).where(_is_of(account))
    return {unit.market.public_key, *(await unit.session.scalars(query.distinct()))}


async def _others(
    unit: Unit, account: AccountId, digests: Collection[Digest], runners: Collection[str]
) -> tuple[set[Digest], set[Digest]]:
    """Of these blobs those that somebody else has too; and what the same nodes sent for others, whose pieces may be the same."""
    elsewhere = select(BlobUseRow.digest).join(JobRow, JobRow.job_id == BlobUseRow.job_id).where(~_is_of(account))
    kept = {Digest(digest) for digest in await unit.session.scalars(elsewhere.where(BlobUseRow.digest.in_(digests)))}
    kept |= await _sent_by_others(unit, account, digests, runners)
    sent_by_runners = select(BlobUploadRow.digest).where(BlobUploadRow.account.in_(runners))
    neighbours = await unit.session.scalars(elsewhere.where(BlobUseRow.digest.in_(sent_by_runners)))
    return kept, {Digest(digest) for digest in neighbours}


async def _sent_by_others(
    unit: Unit, account: AccountId, digests: Collection[Digest], runners: Collection[str]
) -> set[Digest]:
    senders = select(BlobUploadRow.digest).where(
        BlobUploadRow.digest.in_(digests), BlobUploadRow.account != account, BlobUploadRow.account.not_in(runners)
    )
    return {Digest(digest) for digest in await unit.session.scalars(senders)}


async def _blank_jobs(unit: Unit, account: AccountId) -> list[str]:
    """What states, money and receipts need of jobs and leases stays; what the client said, and what its work said, goes."""
    jobs = (await unit.session.scalars(select(JobRow).where(_is_of(account)))).all()
    for job in jobs:
        job.name, job.spec, job.spec_digest, job.detail = ERASED, _BLANK.wire(), _BLANK.digest, ""
        job.checkpoint = job.progress = job.waiting_for = None
    ids = [job.job_id for job in jobs]
    for lease in (await unit.session.scalars(select(LeaseRow).where(LeaseRow.job_id.in_(ids)))).all():
        grant = lease.grant["grant"] | {"spec": _BLANK.wire(), "resume_from": None, "volumes": []}
        lease.grant = {**lease.grant, "grant": grant}  # its signature was over the whole: nobody asks for it again
        lease.detail, lease.outputs, lease.ports, lease.logs = "", [], [], {}
        lease.tasks, lease.task_log_bytes = {}, {}
        lease.checkpoint = lease.claim = None
    await unit.session.flush()
    return ids


async def _delete_rows(unit: Unit, account: AccountId, jobs: list[str]) -> int:
    leases = select(LeaseRow.lease_id).where(LeaseRow.job_id.in_(jobs))
    checks = select(ReplayCheckRow.check_id).where(ReplayCheckRow.lease_id.in_(leases))
    hooks = select(WebhookRow.webhook_id).where(WebhookRow.account == account)
    total = await remove_events(unit.session, jobs)
    for statement in (
        delete(LeaseEventRow).where(LeaseEventRow.lease_id.in_(leases)),
        delete(BlobUseRow).where(BlobUseRow.job_id.in_(jobs)),
        delete(BlobUploadRow).where(BlobUploadRow.account == account),
        delete(IdempotencyRow).where(IdempotencyRow.account == account),
        delete(DataRow).where(DataRow.account == account),
        delete(JobVolumeRow).where(JobVolumeRow.account == account),
        delete(VolumeRow).where(VolumeRow.account == account),
        delete(DeliveryRow).where(DeliveryRow.webhook_id.in_(hooks)),
        delete(WebhookRow).where(WebhookRow.account == account),
    ):
        total += _count(await unit.session.execute(statement.execution_options(synchronize_session=False)))
    for change in (
        update(ApiKeyRow).where(ApiKeyRow.account == account).values(name=ApiKeyRow.key_id),
        update(ApiKeyRow)
        .where(ApiKeyRow.account == account, ApiKeyRow.revoked_at_ms.is_(None))
        .values(revoked_at_ms=unit.now_ms),
        # What was concluded stays, it is why somebody was paid or not; what it was about goes.
        update(ReplayAnswerRow).where(ReplayAnswerRow.check_id.in_(checks)).values(answer=None, detail=""),
        update(ReplayCheckRow)
        .where(ReplayCheckRow.lease_id.in_(leases))
        .values(start=None, end=None, model=None, known=None, detail=""),
        update(DisputeRow).where(DisputeRow.client == account).values(reason=ERASED),
        update(AbuseReportRow)
        .where(AbuseReportRow.reporter == account, AbuseReportRow.state == "closed")
        .values(reason=ERASED),
    ):
        await unit.session.execute(change.execution_options(synchronize_session=False))
    return total


def _count(result: Any) -> int:
    return result.rowcount if isinstance(result, CursorResult) else 0
