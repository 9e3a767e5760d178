"""Earnings: what a usage record is worth, to whom, and when it may be paid.

held by the job -> pending (until the lease is decided) -> payable (a payout each for the node and the marketplace's fee)
                                                        -> held again (what did not pass is not charged)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select

from torg_marketplace.flow.notes import Note
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.money import split_fee
from torg_marketplace.storage import ledger
from torg_marketplace.storage.account_models import CreditHoldRow
from torg_marketplace.storage.among import among
from torg_marketplace.storage.models import LeaseRow
from torg_marketplace.storage.money_models import CommitmentRow, EarningRow, HoldRow, PayoutRow
from torg_protocol.canonical import digest_of
from torg_protocol.ids import LeaseId
from torg_protocol.refunds import RefundCause
from torg_protocol.states import OVER_PAYOUT_STATES, PayoutState
from torg_protocol.usage import UsageRecord

FEE_ADDRESS = "fee"  # stands for the fee account that the operator's config names on chain
PENDING, PAYABLE, REFUNDED = "pending", "payable", "refunded"
_OWED = Note[bool]()  # whether this transaction has made a payout of a lease
VERIFICATION = 0  # in place of a record's sequence, which begins with 1


async def read_money(unit: Unit, lease_ids: Collection[str]) -> None:
    """What the end of these leases will ask for: their ranges, their jobs' holds, and who pays for those on credit."""
    with unit.session.no_autoflush:
        found = (await unit.session.execute(_MONEY, {"lease_ids": list(lease_ids)})).all()
    for hold, _, credit_hold in found:
        if credit_hold is None:
            unit.note_absent(CreditHoldRow, hold.job_id)


_MONEY = (
    select(HoldRow, CommitmentRow, CreditHoldRow)
    .join(LeaseRow, LeaseRow.job_id == HoldRow.job_id)
    .outerjoin(CommitmentRow, CommitmentRow.lease_id == LeaseRow.lease_id)
    .outerjoin(CreditHoldRow, CreditHoldRow.job_id == HoldRow.job_id)
    .where(among(LeaseRow.lease_id, "lease_ids"))
)


async def earn(unit: Unit, *, record: UsageRecord, payable_now: bool) -> None:
    """Books one countersigned record, once: the record's own key sees to that."""
    if record.amount == 0:
        return
    lease = await unit.session.get_one(LeaseRow, record.lease_id)
    node_amount, fee_amount = split_fee(record.amount, unit.policy.fee_basis_points)
    earning = EarningRow(
        lease_id=record.lease_id,
        sequence=record.sequence,
        job_id=record.job_id,
        vault=record.vault,
        payout_address=lease.payout_address,
        node_amount=node_amount,
        fee_amount=fee_amount,
        record_digest=record.digest,
        state=PENDING,
    )
    unit.session.add(earning)
    entries = ledger.move(ledger.held(record.job_id), ledger.pending(record.lease_id), record.amount)
    unit.post(key=f"earn:{_name(earning)}", cause="usage countersigned", entries=entries)
    if payable_now:
        await _make_payable(unit, earning)


async def decide_lease(unit: Unit, *, lease_id: LeaseId, passed: bool, verification: int = 0) -> None:
    """Everything that is still pending of this lease becomes payable, and with it what its verification costs; or goes back to the job's hold.
    Safe to repeat."""
    earned = list(await _earned_by(unit, lease_id))
    if passed and verification and earned:
        earned.append(await _earn_verification(unit, earned[0], verification))
    for earning in earned:
        if earning.state == PENDING and passed:
            await _make_payable(unit, earning)
        elif earning.state == PENDING:
            await _refund(unit, earning)
    paid = sum(item.node_amount + item.fee_amount for item in earned if item.state == PAYABLE)
    await _shrink_commitment(unit, lease_id, paid)


async def keep_pending(unit: Unit, *, lease_id: LeaseId, verification: int) -> None:
    """A lease has ended and will be decided later, with its job: of its range it keeps what it may have earned, and what its verification
    will cost. Safe to repeat."""
    commitment = await unit.session.get_one(CommitmentRow, lease_id)
    if not commitment.decided:
        earned = [item for item in await _earned_by(unit, lease_id) if item.state in (PENDING, PAYABLE)]
        total = sum(item.node_amount + item.fee_amount for item in earned)
        commitment.upper = commitment.lower + total + verification


async def _earn_verification(unit: Unit, first: EarningRow, amount: int) -> EarningRow:
    """The marketplace's, as a fee is."""
    earning = await unit.session.get(EarningRow, (first.lease_id, VERIFICATION))
    if earning is not None:
        return earning
    earning = EarningRow(
        lease_id=first.lease_id,
        sequence=VERIFICATION,
        job_id=first.job_id,
        vault=first.vault,
        payout_address=first.payout_address,
        node_amount=0,
        fee_amount=amount,
        record_digest=digest_of({"verification_of": first.lease_id, "amount": amount}),
        state=PENDING,
    )
    unit.session.add(earning)
    entries = ledger.move(ledger.held(first.job_id), ledger.pending(first.lease_id), amount)
    unit.post(key=f"earn:{_name(earning)}", cause="price of verification", entries=entries)
    return earning


async def _make_payable(unit: Unit, earning: EarningRow) -> None:
    earning.state = PAYABLE
    shares = [(earning.payout_address, earning.node_amount), (FEE_ADDRESS, earning.fee_amount)]
    entries = [ledger.Entry(ledger.pending(earning.lease_id), -earning.node_amount - earning.fee_amount)]
    entries += [ledger.Entry(ledger.payable(earning.vault, address), amount) for address, amount in shares]
    unit.post(key=f"payable:{_name(earning)}", cause="work accepted", entries=entries)
    for address, amount in shares:
        if amount:
            unit.noted[_OWED, earning.lease_id] = True
            unit.session.write(
                PayoutRow,
                payout_id=unit.new_id("pay"),
                vault=earning.vault,
                lease_id=earning.lease_id,
                payout_address=address,
                amount=amount,
                refunded=0,
                record_digest=earning.record_digest,
                state=PayoutState.PENDING,
                settlement_id=None,
                created_at_ms=unit.now_ms,
                note="",
            )
    hold = await unit.session.get_one(HoldRow, earning.job_id)
    hold.billed += earning.node_amount + earning.fee_amount


async def _refund(unit: Unit, earning: EarningRow) -> None:
    earning.state = REFUNDED
    amount = earning.node_amount + earning.fee_amount
    entries = ledger.move(ledger.pending(earning.lease_id), ledger.held(earning.job_id), amount)
    cause = ledger.refund_of(RefundCause.VERIFICATION_FAILED, earning.job_id)
    unit.post(key=f"refund:{_name(earning)}", cause=cause, entries=entries)


async def _shrink_commitment(unit: Unit, lease_id: LeaseId, total: int) -> None:
    """A decided lease needs of its range only what it earned; nothing, when it earned nothing."""
    commitment = await unit.session.get(CommitmentRow, lease_id)
    if commitment is None or commitment.decided:
        return
    commitment.decided = True
    commitment.upper = commitment.lower + total
    # Records that were payable at once may have been captured to the last one by now: no later capture would free the range.
    commitment.released = total == 0 or not await _is_owed(unit, lease_id)


async def _is_owed(unit: Unit, lease_id: LeaseId) -> bool:
    if unit.noted.get((_OWED, lease_id), default=False):
        return True
    query = select(PayoutRow.payout_id).where(
        PayoutRow.lease_id == lease_id, PayoutRow.state.not_in(OVER_PAYOUT_STATES)
    )
    return await unit.session.scalar(query.limit(1)) is not None


async def _earned_by(unit: Unit, lease_id: LeaseId) -> Sequence[EarningRow]:
    """Most leases have one record, made in the transaction that decides about it: that needs no question."""
    lease = await unit.session.get_one(LeaseRow, lease_id)
    if lease.records == 1 and (only := unit.known(EarningRow, (lease_id, 1))) is not None:
        return [only]
    query = select(EarningRow).where(EarningRow.lease_id == lease_id).order_by(EarningRow.sequence)
    return (await unit.session.scalars(query)).all()


def _name(earning: EarningRow) -> str:
    return f"{earning.lease_id}:{earning.sequence}"
