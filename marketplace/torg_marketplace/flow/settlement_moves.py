"""What a capture's fate does to its payouts, the ledger and the vault: one writer for each of their states."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CursorResult, select, update

from torg_chain.captures import LandedCapture
from torg_host import tracing
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage import ledger
from torg_marketplace.storage.models import LeaseRow
from torg_marketplace.storage.money_models import CommitmentRow, PayoutRow, SettlementRow, VaultRow
from torg_marketplace.storage.moves import MovedMeanwhile
from torg_protocol.states import (
    OVER_PAYOUT_STATES,
    PAYOUT_MOVES,
    SETTLEMENT_MOVES,
    PayoutState,
    SettlementState,
    check_move,
)


async def move_settlement(unit: Unit, settlement_id: str, to: SettlementState, *, detail: str = "") -> SettlementRow:
    """Moves a capture and its payouts along. Raises IllegalMove or MovedMeanwhile."""
    row = await unit.session.get_one(SettlementRow, settlement_id)
    current = SettlementState(row.state)
    check_move(SETTLEMENT_MOVES, current, to)
    moved = await unit.session.execute(
        update(SettlementRow)
        .where(SettlementRow.settlement_id == settlement_id, SettlementRow.state == current)
        .values(state=to, detail=detail)
        .execution_options(synchronize_session=False)
    )
    if not isinstance(moved, CursorResult) or moved.rowcount != 1:
        raise MovedMeanwhile("this settlement was moved by somebody else meanwhile", to=str(to))
    await unit.session.refresh(row)
    if to is SettlementState.CONFIRMED:
        await _move_payouts(unit, row, PayoutState.CONFIRMED)
    elif current is SettlementState.CONFIRMED and to is SettlementState.UNKNOWN:
        await _move_payouts(unit, row, PayoutState.PENDING)
        await _move_payouts(unit, row, PayoutState.IN_FLIGHT)
    return row


async def apply_finalized(unit: Unit, settlement_id: str, skipped: frozenset[str], slot: int) -> None:
    """The capture is for good, since `slot`: ledger, vault totals, payouts. Addresses in `skipped` were not paid: theirs wait again."""
    row = await unit.session.get_one(SettlementRow, settlement_id)
    if SettlementState(row.state) is not SettlementState.CONFIRMED:
        row = await move_settlement(unit, settlement_id, SettlementState.CONFIRMED)
    row = await move_settlement(unit, settlement_id, SettlementState.FINALIZED)
    paid = [(address, amount) for address, amount in row.payees if address not in skipped]
    total = sum(amount for _, amount in paid)
    entries = [ledger.Entry(ledger.payable(row.vault, address), -amount) for address, amount in paid]
    entries.append(ledger.Entry(ledger.chain(row.vault), total))
    cause = f"captured by {row.signature}"
    await ledger.post(unit.session, key=f"capture:{settlement_id}", cause=cause, entries=entries, at_ms=unit.now_ms)
    vault = await unit.session.get_one(VaultRow, row.vault)
    vault.chain_settled = row.expected_settled + total
    vault.chain_balance -= total
    vault.chain_slot = max(vault.chain_slot, slot)
    vault.active_settlement = None
    row.outcome = {"paid": total, "skipped": sorted(skipped)}
    for payout in await _payouts(unit, row):
        if payout.payout_address in skipped:
            await _move_payout(unit, payout, PayoutState.PENDING)
            payout.settlement_id, payout.note = (
                None,
                "its token account cannot be paid: closed, frozen or of another mint",
            )
        else:
            await _move_payout(unit, payout, PayoutState.FINALIZED)
    await unit.session.flush()
    await release_commitments(unit, row.vault)
    if tracing.is_on():
        await _trace(unit, row)
    unit.wake("match")


async def _trace(unit: Unit, row: SettlementRow) -> None:
    since = {payout.lease_id: payout.created_at_ms for payout in await _payouts(unit, row)}
    query = select(LeaseRow.lease_id, LeaseRow.job_id).where(LeaseRow.lease_id.in_(since))
    for lease_id, job_id in (await unit.session.execute(query)).all():
        unit.trace("settle", job_id, since[lease_id], lease_id=lease_id, signature=row.signature)


async def adopt(unit: Unit, settlement_id: str, capture: LandedCapture) -> None:
    """This order was landed by somebody else's transaction (finalized): it counts as its own. Also when it was buried."""
    row = await unit.session.get_one(SettlementRow, settlement_id)
    match SettlementState(row.state):
        case SettlementState.BUILT:
            await move_settlement(unit, settlement_id, SettlementState.UNKNOWN)
        case SettlementState.DEAD:
            await _take_payouts_back(unit, row)
        case SettlementState.FINALIZED:
            return
        case SettlementState.UNKNOWN | SettlementState.CONFIRMED:
            pass
    row.signature = capture.signature
    await unit.session.flush()
    skipped = await skipped_addresses(unit, settlement_id, capture.skipped)
    await apply_finalized(unit, settlement_id, skipped, capture.slot)


async def skipped_addresses(unit: Unit, settlement_id: str, skipped: frozenset[int]) -> frozenset[str]:
    """Payout addresses (the fee's stand-in included) behind the skipped accounts of the transaction."""
    row = await unit.session.get_one(SettlementRow, settlement_id)
    return frozenset(address for index, (address, _) in enumerate(row.payees) if index in skipped)


async def bury(unit: Unit, settlement_id: str, detail: str) -> None:
    """The capture can never land any more: its payouts wait again for a new one."""
    row = await move_settlement(unit, settlement_id, SettlementState.DEAD, detail=detail)
    for payout in await _payouts(unit, row):
        await _move_payout(unit, payout, PayoutState.PENDING)
        payout.settlement_id = None
    vault = await unit.session.get_one(VaultRow, row.vault)
    vault.active_settlement = None


async def lose(unit: Unit, payout: PayoutRow) -> None:
    """Its vault is closed, and what it was owed has left with the depositor: said once in the ledger, and the payout is over."""
    source = ledger.payable(payout.vault, payout.payout_address)
    await ledger.post(
        unit.session,
        key=f"lost:{payout.payout_id}",
        cause="lost: the vault was closed before it was captured",
        entries=ledger.move(source, ledger.chain(payout.vault), payout.amount),
        at_ms=unit.now_ms,
    )
    await _move_payout(unit, payout, PayoutState.LOST)
    payout.note = "the vault was closed before it was captured"


async def give_back(unit: Unit, payout: PayoutRow, amount: int) -> None:
    """A payout that waits is worth so much less; at nothing it is over. The caller posts it."""
    payout.amount -= amount
    payout.refunded += amount
    if payout.amount == 0:
        await _move_payout(unit, payout, PayoutState.REFUNDED)


async def finish_payouts(unit: Unit, payouts: Sequence[PayoutRow], settlement_id: str) -> None:
    """Payouts that waited were paid by a capture that is found only now, final already."""
    for payout in payouts:
        for state in (PayoutState.IN_FLIGHT, PayoutState.CONFIRMED, PayoutState.FINALIZED):
            await _move_payout(unit, payout, state)
        payout.settlement_id = settlement_id


async def release_commitments(unit: Unit, vault: str) -> None:
    """Ranges of decided leases whose every payout is final are free for others."""
    waiting = select(PayoutRow.lease_id).where(PayoutRow.vault == vault, PayoutRow.state.not_in(OVER_PAYOUT_STATES))
    await unit.session.execute(
        update(CommitmentRow)
        .where(CommitmentRow.vault == vault, CommitmentRow.decided.is_(True), CommitmentRow.lease_id.not_in(waiting))
        .values(released=True)
        .execution_options(synchronize_session=False)
    )


async def _take_payouts_back(unit: Unit, row: SettlementRow) -> None:
    """A buried order's payouts wait again (whoever took them since was buried before this)."""
    query = select(PayoutRow).where(PayoutRow.payout_id.in_(row.payout_ids))
    vault = await unit.session.get_one(VaultRow, row.vault)
    for payout in await unit.session.scalars(query):
        await _move_payout(unit, payout, PayoutState.IN_FLIGHT)
        payout.settlement_id = row.settlement_id
    vault.active_settlement = row.settlement_id
    await unit.session.flush()


async def _payouts(unit: Unit, row: SettlementRow) -> list[PayoutRow]:
    return list(await unit.session.scalars(select(PayoutRow).where(PayoutRow.settlement_id == row.settlement_id)))


async def _move_payouts(unit: Unit, row: SettlementRow, to: PayoutState) -> None:
    for payout in await _payouts(unit, row):
        await _move_payout(unit, payout, to)


async def _move_payout(unit: Unit, payout: PayoutRow, to: PayoutState) -> None:
    check_move(PAYOUT_MOVES, PayoutState(payout.state), to)
    payout.state = to
    await unit.session.flush()
