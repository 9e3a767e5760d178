"""Receipts: one for every decided lease, complete enough to be verified without marketplace or network."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from torg_marketplace.flow.rows import job_of, resumed_from, spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.usage import RECORD
from torg_marketplace.storage.among import among
from torg_marketplace.storage.events import add_job_event
from torg_marketplace.storage.models import JobRow, LeaseRow, ReceiptRow, UsageRow
from torg_protocol.api import JobReceipts
from torg_protocol.errors import Invalid, NotFound
from torg_protocol.ids import AccountId, Digest, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.messages import ReceiptIssued, ReceiptSigned
from torg_protocol.signing import verify_document
from torg_protocol.states import EndReason
from torg_protocol.usage import (
    OutputFile,
    Receipt,
    ResourceUse,
    SignedReceipt,
    SignedUsage,
    Timeline,
    VerdictSummary,
    usage_root,
)


async def receipts(unit: Unit, account: AccountId, job_id: JobId) -> JobReceipts:
    """One per decided lease, in the order of attempts, of a gang by rank."""
    job = await job_of(unit, account, job_id)
    query = (
        select(ReceiptRow)
        .join(LeaseRow, LeaseRow.lease_id == ReceiptRow.lease_id)
        .where(ReceiptRow.job_id == job.job_id)
        .order_by(LeaseRow.attempt, LeaseRow.rank)
    )
    rows = (await unit.session.scalars(query)).all()
    return JobReceipts(receipts=tuple(SignedReceipt.model_validate(row.signed) for row in rows))


async def issue_receipt(unit: Unit, lease: LeaseRow, job: JobRow) -> SignedReceipt:
    """Builds, signs, stores and sends the receipt of a lease that was just decided."""
    usage = await _billed_usage(unit, lease)
    receipt = _receipt(unit, lease, job, usage)
    digest = receipt.digest
    signed = SignedReceipt(receipt=receipt, usage=usage, marketplace_signature=receipt.sign(unit.market.identity))
    unit.session.write(
        ReceiptRow,
        lease_id=lease.lease_id,
        job_id=job.job_id,
        issued_at_ms=unit.now_ms,
        receipt_digest=digest,
        signed=signed.wire(),
    )
    data = {
        "digest": digest,
        "state": receipt.state,
        "reason": receipt.reason,
        "amount": receipt.amount,
        "verification_amount": receipt.verification_amount,
        "billed_ms": receipt.billed_ms,
        "unbilled_ms": receipt.unbilled_ms,
        "verdict": receipt.verdict.wire(),
    }
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="receipt", data=data, at_ms=unit.now_ms)
    unit.send(lease.node, ReceiptIssued(receipt=signed))
    return signed


async def issued_receipt(unit: Unit, lease_id: str) -> SignedReceipt | None:
    row = await unit.session.get(ReceiptRow, lease_id)
    return None if row is None else SignedReceipt.model_validate(row.signed)


async def read_receipts(unit: Unit, lease_ids: Collection[str]) -> None:
    """For `on_receipt_signed` of each of them."""
    with unit.session.no_autoflush:
        (await unit.session.scalars(_RECEIPTS, {"lease_ids": list(lease_ids)})).all()


_RECEIPTS = select(ReceiptRow).where(among(ReceiptRow.lease_id, "lease_ids"))


async def on_receipt_signed(unit: Unit, node_id: NodeId, message: ReceiptSigned) -> None:
    """Adds the node's signature to its receipt. Raises NotFound or Invalid; safe to repeat."""
    row = await unit.session.get(ReceiptRow, message.lease_id)
    receipt = None if row is None else row.signed["receipt"]  # as it was signed: nothing is made of it first
    if row is None or receipt is None or receipt["node"] != node_id:
        raise NotFound("no such receipt of yours", code="receipt_unknown", field="lease_id", value=message.lease_id)
    is_same = message.receipt_digest == row.receipt_digest
    if not is_same or not verify_document(node_id, message.signature, Receipt.KIND, receipt):
        raise Invalid(
            "this does not sign the receipt that was issued", code="receipt_signature_invalid", field="signature"
        )
    row.signed = row.signed | {"node_signature": message.signature}


async def _billed_usage(unit: Unit, lease: LeaseRow) -> tuple[SignedUsage, ...]:
    """The records that are paid: all of them, or none (what did not pass its verdict)."""
    if lease.amount == 0 and lease.billed_ms == 0:
        return ()
    if lease.records == 1 and (RECORD, lease.lease_id) in unit.noted:
        return (unit.noted[RECORD, lease.lease_id],)  # made in this transaction
    query = select(UsageRow).where(UsageRow.lease_id == lease.lease_id).order_by(UsageRow.sequence)
    return tuple(SignedUsage.model_validate(row.signed) for row in await unit.session.scalars(query))


def _receipt(unit: Unit, lease: LeaseRow, job: JobRow, usage: tuple[SignedUsage, ...]) -> Receipt:
    spec, checkpoint = spec_of(job), resumed_from(lease)
    return Receipt(
        lease_id=LeaseId(lease.lease_id),
        job_id=job.id,
        attempt=lease.attempt,
        client=job.account,
        node=lease.node,
        payout_address=lease.payout_address,
        vault=VaultAddress(job.vault),
        marketplace=unit.market.public_key,
        state=lease.status,
        reason=EndReason(lease.reason or EndReason.COMPLETED),
        exit_code=lease.exit_code,
        spec_digest=Digest(job.spec_digest),
        image=", ".join(spec.images),
        image_digest=lease.image_digest,
        input_digest=spec.workspace.digest if spec.workspace is not None else None,
        inputs=spec.input_files(),
        resumed_from=checkpoint.blob.digest if checkpoint is not None else None,
        outputs=tuple(OutputFile.model_validate(item) for item in lease.outputs),
        executor=lease.executor,
        isolation=lease.isolation,
        gpu_uuids=tuple(lease.gpu_uuids),
        use=ResourceUse.model_validate(lease.use) if lease.use is not None else None,
        timeline=Timeline(
            granted_at_ms=lease.granted_at_ms,
            started_at_ms=lease.started_at_ms,
            exited_at_ms=lease.exited_at_ms,
            reported_at_ms=lease.reported_at_ms,
            decided_at_ms=lease.decided_at_ms,
        ),
        verdict=VerdictSummary.model_validate(lease.verdict),
        price_per_gpu_hour=lease.price_per_gpu_hour,
        billable_gpus=lease.billable_gpus,
        billed_ms=lease.billed_ms,
        unbilled_ms=lease.unbilled_ms,
        amount=lease.amount,
        verification_amount=lease.verification_amount,
        usage_root=usage_root(usage),
    )
