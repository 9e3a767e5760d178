"""Refund: part of what a lease cost goes back to its client, once per cause and subject, as a posting.

    payable (not captured yet) -> free, or held again while the job is open      it is simply not captured
    promised -> credit          nothing of it waited any more: later fees out of the vault work the credit off

A payout that an order on its way pays is left alone, also when that order's transaction is dead: a payee may still land it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import BigInteger, func, literal, select, tuple_, update

from torg_marketplace.flow.cursors import cursor_of, row_in
from torg_marketplace.flow.earnings import FEE_ADDRESS
from torg_marketplace.flow.settlement_moves import give_back, release_commitments
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.refunds import RefundPlan, Take, Waiting, plan_refund, refundable, work_off
from torg_marketplace.storage import ledger
from torg_marketplace.storage.account_models import ApiKeyRow, CreditHoldRow, CreditRow
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.money_models import EarningRow, HoldRow, PayoutRow, RefundRow, SettlementRow, VaultRow
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.messages import RefundIssued
from torg_protocol.refunds import Refund, RefundCause, RefundPage, RefundView, SignedRefund
from torg_protocol.states import PayoutState, SettlementState

log = logging.getLogger(__name__)
_REMIND_NODES_MS = 30 * 86_400_000


async def refund_lease(
    unit: Unit, lease_id: str, amount: int, cause: RefundCause, *, subject: str | None = None, note: str = ""
) -> SignedRefund:
    """Gives back `amount` base units of a decided lease's price. The same cause and subject (default: the lease) give the same
    refund again and move nothing.

    Raises NotFound lease_unknown; Conflict refund_too_early (the lease is not decided), refund_too_large (more than is left of what was
    paid), refund_repeated (another amount under the same cause and subject); Invalid refund_amount_invalid.
    """
    refund_id = f"{cause}:{subject or lease_id}"
    if (known := await unit.session.get(RefundRow, refund_id)) is not None:
        return _same(unit, known, lease_id, amount)
    lease = await unit.session.get(LeaseRow, lease_id)
    if lease is None:
        raise NotFound("no such lease", code="lease_unknown", field="lease_id", value=lease_id)
    job = await unit.session.get_one(JobRow, lease.job_id)
    vault = await unit.session.get_one(VaultRow, job.vault, with_for_update=True)
    await _check(unit, lease, amount)
    plan = await _plan(unit, lease, vault, amount, cause)
    refund = Refund(
        refund_id=refund_id,
        cause=cause,
        marketplace=unit.market.public_key,
        client=AccountId(job.client),
        vault=VaultAddress(job.vault),
        job_id=JobId(job.job_id),
        lease_id=LeaseId(lease_id),
        node=NodeId(lease.node_id),
        amount=amount,
        from_node=sum(take.amount for take in plan.from_node),
        from_fees=sum(take.amount for take in plan.from_fees),
        at_ms=unit.now_ms,
        note=note,
    )
    signed = SignedRefund(refund=refund, signature=refund.sign(unit.market.identity))
    row = _row(signed)
    unit.session.add(row)
    vault.credit += plan.credit
    entries = await _take_off(unit, vault, (*plan.from_node, *plan.from_fees))
    if plan.credit:
        entries += ledger.move(ledger.promised(vault.address), ledger.credit(vault.address), plan.credit)
    await _post(unit, row, entries)
    await _return_credit_of_account(unit, job.job_id, amount)
    await release_commitments(unit, vault.address)
    if refund.from_node:
        unit.send(lease.node, RefundIssued(refund=signed))
    unit.wake(f"job:{job.job_id}")
    log.info("refund %s: %s base units of job %s, %s of it as credit", refund_id, amount, job.job_id, plan.credit)
    return signed


async def work_credit_off(market: Market) -> int:
    """Fees that wait in vaults with credit are given back until it is worked off. Base units. Safe to call at any rate."""
    async with market.reading() as unit:
        query = select(VaultRow.address).where(VaultRow.credit > 0, VaultRow.closed.is_(False))
        vaults = (await unit.session.scalars(query)).all()
    return sum([await _work_off_vault(market, address) for address in vaults])


async def refunds_of(
    unit: Unit, account: AccountId, *, job_id: str | None = None, cursor: str | None = None, limit: int = 50
) -> RefundPage:
    """An account's, oldest first. The cursor names the last one of the page before."""
    query = select(RefundRow).where(RefundRow.client == account).order_by(RefundRow.at_ms, RefundRow.refund_id)
    if job_id is not None:
        query = query.where(RefundRow.job_id == job_id)
    if cursor is not None:
        before = await row_in(unit.session, cursor, query, RefundRow.refund_id)
        place = tuple_(literal(before.at_ms, BigInteger), literal(before.refund_id))
        query = query.where(tuple_(RefundRow.at_ms, RefundRow.refund_id) > place)
    rows = (await unit.session.scalars(query.limit(limit + 1))).all()
    views = tuple(
        RefundView(signed=SignedRefund.model_validate(row.signed), outstanding=row.outstanding) for row in rows[:limit]
    )
    return RefundPage(refunds=views, next_cursor=cursor_of(rows[limit - 1].refund_id) if len(rows) > limit else None)


async def all_refunds(unit: Unit, *, limit: int = 200) -> list[RefundRow]:
    """For the operator, newest first."""
    query = select(RefundRow).order_by(RefundRow.at_ms.desc(), RefundRow.refund_id).limit(limit)
    return list(await unit.session.scalars(query))


async def remind_of_refunds(unit: Unit, node_id: NodeId) -> None:
    """Says again what a node may have missed; it keeps each once."""
    query = select(RefundRow.signed).where(
        RefundRow.node_id == node_id, RefundRow.at_ms > unit.now_ms - _REMIND_NODES_MS, RefundRow.from_node > 0
    )
    for signed in await unit.session.scalars(query):
        unit.send(node_id, RefundIssued(refund=SignedRefund.model_validate(signed)))


def _same(unit: Unit, known: RefundRow, lease_id: str, amount: int) -> SignedRefund:
    if (known.lease_id, known.amount) != (lease_id, amount):
        raise Conflict(
            "another refund was decided under this cause and subject",
            code="refund_repeated",
            field="refund_id",
            value=known.refund_id,
            hint=f"it gave back {unit.tokens(known.amount)} of {known.lease_id}",
        )
    return SignedRefund.model_validate(known.signed)


def _row(signed: SignedRefund) -> RefundRow:
    refund = signed.refund
    return RefundRow(
        refund_id=refund.refund_id,
        cause=refund.cause,
        lease_id=refund.lease_id,
        job_id=refund.job_id,
        client=refund.client,
        node_id=refund.node,
        vault=refund.vault,
        amount=refund.amount,
        from_node=refund.from_node,
        from_fees=refund.from_fees,
        outstanding=refund.credit,
        postings=0,
        at_ms=refund.at_ms,
        signed=signed.wire(),
    )


async def _check(unit: Unit, lease: LeaseRow, amount: int) -> None:
    if amount <= 0:
        raise Invalid("a refund gives something back", code="refund_amount_invalid", field="amount", value=amount)
    if lease.decided_at_ms is None:
        raise Conflict(
            "what this lease costs is not decided yet",
            code="refund_too_early",
            field="lease_id",
            value=lease.lease_id,
            hint="wait for its receipt",
        )
    before = await unit.session.scalars(select(RefundRow.amount).where(RefundRow.lease_id == lease.lease_id))
    left = refundable(lease.amount, before.all())
    if amount > left:
        raise Conflict(
            "more than is left of what was paid for this lease",
            code="refund_too_large",
            field="amount",
            value=unit.tokens(amount),
            hint=f"{unit.tokens(lease.amount)} were paid, {unit.tokens(left)} of them may still be given back",
        )


async def _plan(unit: Unit, lease: LeaseRow, vault: VaultRow, amount: int, cause: RefundCause) -> RefundPlan:
    query = select(func.sum(EarningRow.node_amount)).where(
        EarningRow.lease_id == lease.lease_id, EarningRow.state == "payable"
    )
    return plan_refund(
        amount,
        cause,
        lease_id=lease.lease_id,
        paid=lease.amount,
        paid_to_node=int(await unit.session.scalar(query) or 0),
        node=await _waiting(unit, vault, lease.payout_address),
        fees=await _waiting(unit, vault, FEE_ADDRESS),
    )


async def _waiting(unit: Unit, vault: VaultRow, address: str) -> list[Waiting]:
    """What waits for an address, without what an order pays that its holder could still land."""
    query = select(SettlementRow.payout_ids).where(
        SettlementRow.vault == vault.address,
        SettlementRow.state == SettlementState.DEAD,
        SettlementRow.expected_settled >= vault.chain_settled,
    )
    ordered = {payout_id for ids in await unit.session.scalars(query) for payout_id in ids}
    payouts = select(PayoutRow).where(
        PayoutRow.vault == vault.address,
        PayoutRow.payout_address == address,
        PayoutRow.state == PayoutState.PENDING,
    )
    return [
        Waiting(row.payout_id, row.lease_id, row.amount)
        for row in await unit.session.scalars(payouts)
        if row.payout_id not in ordered
    ]


async def _take_off(unit: Unit, vault: VaultRow, takes: Sequence[Take]) -> list[ledger.Entry]:
    """Lowers the payouts, and what their jobs have cost in the end."""
    entries: list[ledger.Entry] = []
    for take in takes:
        payout = await unit.session.get_one(PayoutRow, take.payout_id)
        job_id = await unit.session.scalar(select(LeaseRow.job_id).where(LeaseRow.lease_id == payout.lease_id))
        hold = await unit.session.get_one(HoldRow, job_id)
        await give_back(unit, payout, take.amount)
        hold.refunded += take.amount
        if not hold.open:
            vault.final_total -= take.amount
        target = ledger.held(hold.job_id) if hold.open else ledger.free(vault.address)
        entries += ledger.move(ledger.payable(vault.address, payout.payout_address), target, take.amount)
        await unit.session.flush()
    return entries


async def _post(unit: Unit, row: RefundRow, entries: Sequence[ledger.Entry]) -> None:
    row.postings += 1
    key = f"refunded:{row.refund_id}:{row.postings}"
    await ledger.post(
        unit.session, key=key, cause=ledger.refund_of(row.cause, row.job_id), entries=entries, at_ms=unit.now_ms
    )


async def _work_off_vault(market: Market, address: str) -> int:
    async with market.transaction() as unit:
        vault = await unit.session.get_one(VaultRow, address, with_for_update=True)
        query = select(RefundRow).where(RefundRow.vault == address, RefundRow.outstanding > 0)
        total = 0
        for row in (await unit.session.scalars(query.order_by(RefundRow.at_ms, RefundRow.refund_id))).all():
            takes = work_off(row.outstanding, await _waiting(unit, vault, FEE_ADDRESS))
            covered = sum(take.amount for take in takes)
            if not covered:
                break
            row.outstanding -= covered
            vault.credit -= covered
            entries = await _take_off(unit, vault, takes)
            entries += ledger.move(ledger.credit(address), ledger.promised(address), covered)
            await _post(unit, row, entries)
            total += covered
        await release_commitments(unit, address)
        return total


async def _return_credit_of_account(unit: Unit, job_id: str, amount: int) -> None:
    """A job of an API key: its account and key have spent less. While its hold is open, `close_credit` sees to it."""
    held = await unit.session.get(CreditHoldRow, job_id)
    if held is None or held.open:
        return
    for table, is_it in ((ApiKeyRow, ApiKeyRow.key_id == held.key_id), (CreditRow, CreditRow.account == held.account)):
        await unit.session.execute(
            update(table).where(is_it).values(spent=table.spent - amount).execution_options(synchronize_session=False)
        )
