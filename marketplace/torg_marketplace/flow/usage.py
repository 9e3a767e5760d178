"""Usage: useful time becomes signed records, and records become earnings.

While a job runs, a record covers no more than its newest durable checkpoint proves, so that nothing that was earned has to be
given back when the node is lost. What is left comes in the final record, when the lease has ended for a reason that is billed.
"""

from __future__ import annotations

from torg_marketplace.flow import earnings
from torg_marketplace.flow.notes import Note
from torg_marketplace.flow.rows import node_row, spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules import metering
from torg_marketplace.rules.metering import Meter, RecordFrame
from torg_marketplace.storage.models import JobRow, LeaseRow, UsageRow
from torg_protocol.errors import Invalid
from torg_protocol.ids import JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.messages import UsageClaimed, UsageCountersigned
from torg_protocol.states import Billing, JobState
from torg_protocol.usage import SignedUsage, UsageRecord

RECORD = Note[SignedUsage]()  # of a lease, the newest that this transaction has made


async def on_usage(unit: Unit, lease: LeaseRow, job: JobRow, claim: UsageClaimed) -> None:
    """Takes the node's claim, and countersigns as much of it as is safe from loss. Raises Invalid for a record that is not
    of this lease or does not add up."""
    record = claim.record
    _check_claim(lease, job, claim)
    if lease.exited_at_ms is None:  # EXITED has said the total already
        lease.claimed_ms = metering.claimed_total_ms(
            claimed_before_ms=lease.claimed_ms,
            record=record,
            claimed_start_ms=lease.claimed_started_at_ms or record.start_ms,
        )
    lease.claim = claim.wire()
    await record_usage(unit, lease, job, Billing.CHECKPOINT, final=False)


async def record_usage(unit: Unit, lease: LeaseRow, job: JobRow, billing: Billing, *, final: bool) -> None:
    """Makes the next record, if there is anything to pay: the node's own claim when it is acceptable as it is, with both
    signatures; else the marketplace's, which signs alone."""
    meter = meter_of(unit, lease, job)
    payable = metering.payable_ms(meter, billing)
    if final:
        worked_ms = max(metering.worked_ms(meter), await _known_at_work_ms(unit, lease))
        lease.unbilled_ms = max(0, worked_ms - lease.billed_ms - payable)
    if payable == 0:
        return
    signed = _sign(unit, lease, job, payable, final=final)
    unit.session.write(UsageRow, lease_id=lease.lease_id, sequence=signed.record.sequence, signed=signed.wire())
    unit.noted[RECORD, lease.lease_id] = signed
    lease.records = signed.record.sequence
    lease.recorded_until_ms = signed.record.end_ms
    lease.billed_ms += signed.record.useful_ms
    lease.amount += signed.record.amount
    lease.claim = None
    payable_now = spec_of(job).verify.policy == "none"
    await earnings.earn(unit, record=signed.record, payable_now=payable_now)
    unit.send(lease.node, UsageCountersigned(usage=signed))


def meter_of(unit: Unit, lease: LeaseRow, job: JobRow) -> Meter:
    until_ms = _first_of(lease.exited_at_ms, lease.left_at_ms, unit.now_ms)
    if job.state == JobState.CANCELLED and job.cancel_requested_at_ms is not None:
        # Cancelled while nobody could tell the node: what it went on doing was of no use to anybody.
        until_ms = min(until_ms, job.cancel_requested_at_ms + unit.policy.stop_grace_ms)
    return Meter(
        claimed_ms=max(lease.claimed_ms, lease.checkpoint_useful_ms),
        seen_ms=0 if lease.started_at_ms is None else max(0, until_ms - lease.started_at_ms),
        skew_ms=0 if lease.started_at_ms is None else unit.policy.usage_skew_ms,
        checkpoint_ms=lease.checkpoint_useful_ms,
        max_duration_ms=lease.max_duration_ms,
        max_amount=lease.max_amount,
        price_per_gpu_hour=lease.price_per_gpu_hour,
        billable_gpus=lease.billable_gpus,
        recorded_ms=lease.billed_ms,
        recorded_amount=lease.amount,
        waited_ms=_waited_ms(lease, until_ms + unit.policy.usage_skew_ms) + _lost_ms(lease),
    )


def _lost_ms(lease: LeaseRow) -> int:
    """With members that left. Whoever had ended before had nothing to lose any more, though it may have said so later."""
    ended_ms = lease.exited_at_ms
    return sum(lost_ms for left_at_ms, lost_ms in lease.losses if ended_ms is None or left_at_ms < ended_ms)


def _first_of(*moments_ms: int | None) -> int:
    return min(moment_ms for moment_ms in moments_ms if moment_ms is not None)


def _waited_ms(lease: LeaseRow, until_ms: int) -> int:
    if lease.started_at_ms is None:
        return 0
    return max(0, (until_ms if lease.useful_from_ms is None else lease.useful_from_ms) - lease.started_at_ms)


async def _known_at_work_ms(unit: Unit, lease: LeaseRow) -> int:
    """A lost node claims nothing more. That it worked is known until it was last heard of: lost work, which nobody pays."""
    if lease.started_at_ms is None or lease.exited_at_ms is not None:
        return 0
    node = await node_row(unit, lease.node_id)
    until_ms = _first_of(node.last_seen_ms, lease.left_at_ms)
    return min(max(0, until_ms - lease.started_at_ms), lease.max_duration_ms)


def _check_claim(lease: LeaseRow, job: JobRow, claim: UsageClaimed) -> None:
    record = claim.record
    wrong = [
        name
        for name, said, known in (
            ("lease_id", record.lease_id, lease.lease_id),
            ("job_id", record.job_id, job.job_id),
            ("attempt", record.attempt, lease.attempt),
            ("node", record.node, lease.node_id),
            ("vault", record.vault, job.vault),
            ("price_per_gpu_hour", record.price_per_gpu_hour, lease.price_per_gpu_hour),
            ("billable_gpus", record.billable_gpus, lease.billable_gpus),
        )
        if said != known
    ]
    if wrong:
        raise Invalid(
            "the usage record is not of this lease",
            code="usage_invalid",
            field=wrong[0],
            value=getattr(record, wrong[0]),
        )
    if problems := record.problems():
        raise Invalid("; ".join(problems), code="usage_invalid", field="useful_ms", value=record.useful_ms)
    if not record.is_signed_by(record.node, claim.node_signature):
        raise Invalid("the usage record's signature does not verify", code="usage_invalid", field="node_signature")


def _sign(unit: Unit, lease: LeaseRow, job: JobRow, payable: int, *, final: bool) -> SignedUsage:
    claim = UsageClaimed.model_validate(lease.claim) if lease.claim is not None else None
    if claim is not None and _is_acceptable(lease, claim.record, payable, final=final):
        record, node_signature = claim.record, claim.node_signature
    else:
        record, node_signature = _own_record(lease, job, payable, final=final), None
    return SignedUsage(
        record=record, node_signature=node_signature, marketplace_signature=record.sign(unit.market.identity)
    )


def _is_acceptable(lease: LeaseRow, claimed: UsageRecord, payable: int, *, final: bool) -> bool:
    follows = lease.recorded_until_ms is None or claimed.start_ms >= lease.recorded_until_ms
    return claimed.sequence == lease.records + 1 and follows and claimed.useful_ms == payable and claimed.final == final


def _own_record(lease: LeaseRow, job: JobRow, payable: int, *, final: bool) -> UsageRecord:
    first_ms = lease.claimed_started_at_ms or lease.started_at_ms or lease.granted_at_ms
    start_ms = lease.recorded_until_ms or first_ms + _waited_ms(lease, first_ms)
    template = UsageRecord(
        lease_id=LeaseId(lease.lease_id),
        sequence=1,
        job_id=JobId(lease.job_id),
        attempt=lease.attempt,
        node=NodeId(lease.node_id),
        vault=VaultAddress(job.vault),
        start_ms=start_ms,
        end_ms=start_ms,
        useful_ms=0,
        price_per_gpu_hour=lease.price_per_gpu_hour,
        billable_gpus=lease.billable_gpus,
        amount=0,
    )
    frame = RecordFrame(template, sequence=lease.records + 1, start_ms=start_ms)
    return metering.next_record(frame, useful=payable, end_ms=start_ms + payable, final=final)
