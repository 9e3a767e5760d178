"""Disputes: a client objects to what a finished job cost, a person decides, and the decision is a posting.

One per job, within the policy's window after the job's end. Client and nodes see the decision; a refund reaches both as every other one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import or_, select

from torg_marketplace.flow.refunds import refund_lease
from torg_marketplace.flow.rows import job_of, leases_of_job
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.refunds import refundable
from torg_marketplace.storage.case_models import DisputeRow
from torg_marketplace.storage.events import add_node_event
from torg_marketplace.storage.models import LeaseRow
from torg_marketplace.storage.money_models import RefundRow
from torg_protocol.cases import DisputePage, DisputeView
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import AccountId, JobId, NodeId
from torg_protocol.refunds import RefundCause

log = logging.getLogger(__name__)
_LISTED = 200


async def open_dispute(unit: Unit, account: AccountId, job_id: JobId, reason: str) -> DisputeView:
    """Safe to repeat with the same reason. Raises NotFound job_unknown; Conflict dispute_too_early (the job is not over),
    dispute_too_late, dispute_exists (another reason), nothing_to_dispute (it cost nothing)."""
    job = await job_of(unit, account, job_id)
    known = (await unit.session.scalars(select(DisputeRow).where(DisputeRow.job_id == job_id))).one_or_none()
    if known is not None:
        if known.reason == reason:
            return await _view(unit, known)
        raise Conflict(
            "there is a dispute about this job already",
            code="dispute_exists",
            field="job_id",
            value=job_id,
            hint=f"{known.dispute_id} is {known.state}: one per job",
        )
    if job.closed_at_ms is None:
        raise Conflict(
            "the job is not over",
            code="dispute_too_early",
            field="job_id",
            value=job_id,
            hint="wait for its receipt, or cancel it: torg cancel",
        )
    window_ms = unit.policy.dispute_window_ms
    if unit.now_ms > job.closed_at_ms + window_ms:
        raise Conflict(
            f"a job may be disputed for {window_ms // 86_400_000} days after its end",
            code="dispute_too_late",
            field="job_id",
            value=job_id,
            hint="write to the operator: it may still give something back",
        )
    if not any(lease.amount for lease in await leases_of_job(unit, job_id)):
        raise Conflict("this job cost nothing", code="nothing_to_dispute", field="job_id", value=job_id)
    row = DisputeRow(
        dispute_id=unit.new_id("dispute"),
        job_id=job_id,
        client=account,
        reason=reason,
        state="open",
        opened_at_ms=unit.now_ms,
    )
    unit.session.add(row)
    await unit.session.flush()
    log.warning("dispute %s about job %s: %s", row.dispute_id, job_id, reason)
    await _tell_nodes(unit, row)
    return await _view(unit, row)


async def decide_dispute(unit: Unit, dispute_id: str, *, share_percent: int, note: str) -> DisputeView:
    """Gives back that share of the price of each of the job's leases, or of what earlier refunds have left of it; 0 rejects.

    Once: repeating it with another decision raises Conflict dispute_decided. Raises NotFound dispute_unknown, Invalid note_missing,
    share_invalid.
    """
    row = await unit.session.get(DisputeRow, dispute_id, with_for_update=True)
    if row is None:
        raise NotFound("no such dispute", code="dispute_unknown", field="dispute_id", value=dispute_id)
    if row.state == "decided":
        raise Conflict(
            "this dispute is decided",
            code="dispute_decided",
            field="dispute_id",
            value=dispute_id,
            hint=f"{unit.tokens(row.refunded)} went back: {row.note}; torg-marketplace refund can give back more",
        )
    if not note.strip():
        raise Invalid("say why", code="note_missing", field="--note", hint="both sides read it")
    if not 0 <= share_percent <= 100:
        raise Invalid("not a share", code="share_invalid", field="--refund", value=share_percent, hint="0% to 100%")
    for lease in await leases_of_job(unit, row.job_id):
        before = await unit.session.scalars(select(RefundRow.amount).where(RefundRow.lease_id == lease.lease_id))
        amount = min(lease.amount * share_percent // 100, refundable(lease.amount, before.all()))
        if amount > 0:
            subject = f"{dispute_id}:{lease.attempt}" + (f".{lease.rank}" if lease.rank else "")
            await refund_lease(unit, lease.lease_id, amount, RefundCause.DISPUTE, subject=subject, note=note)
            row.refunded += amount
    row.state, row.note, row.decided_at_ms = "decided", note, unit.now_ms
    await unit.session.flush()
    log.warning("dispute %s is decided: %s go back: %s", dispute_id, unit.tokens(row.refunded), note)
    await _tell_nodes(unit, row)
    return await _view(unit, row)


async def disputes_of(unit: Unit, party: str) -> DisputePage:
    """A client's own, and those about jobs that this node ran, newest first."""
    ran = select(LeaseRow.job_id).where(LeaseRow.node_id == party)
    rows = await _rows(unit, or_(DisputeRow.client == party, DisputeRow.job_id.in_(ran)))
    return DisputePage(disputes=tuple([await _view(unit, row) for row in rows]))


async def all_disputes(unit: Unit) -> list[DisputeView]:
    """For the operator: open ones first, then the newest."""
    rows = await _rows(unit, DisputeRow.dispute_id != "")
    return [await _view(unit, row) for row in sorted(rows, key=lambda row: row.state != "open")]


async def _rows(unit: Unit, condition: object) -> Sequence[DisputeRow]:
    query = select(DisputeRow).where(condition)  # type: ignore[arg-type] # either of two kinds of expression
    return (await unit.session.scalars(query.order_by(DisputeRow.dispute_id.desc()).limit(_LISTED))).all()


async def _tell_nodes(unit: Unit, row: DisputeRow) -> None:
    data = {"dispute": row.dispute_id, "job_id": row.job_id, "state": row.state, "note": row.note}
    for node_id in await _nodes(unit, row.job_id):
        add_node_event(unit.session, node_id=node_id, data=data, at_ms=unit.now_ms)


async def _nodes(unit: Unit, job_id: str) -> tuple[NodeId, ...]:
    found = dict.fromkeys(lease.node for lease in await leases_of_job(unit, job_id))
    return tuple(found)


async def _view(unit: Unit, row: DisputeRow) -> DisputeView:
    return DisputeView(
        dispute_id=row.dispute_id,
        job_id=JobId(row.job_id),
        client=AccountId(row.client),
        nodes=await _nodes(unit, row.job_id),
        reason=row.reason,
        state="decided" if row.state == "decided" else "open",
        opened_at_ms=row.opened_at_ms,
        decided_at_ms=row.decided_at_ms,
        refunded=row.refunded,
        note=row.note,
    )
