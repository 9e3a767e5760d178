"""Recover: after a backup was restored, books what the chain did since, so that nothing is captured twice and the ledger is right.

Without it a restored marketplace is safe and stuck: a capture that it does not remember stops its vault. Here the operator says that it
was its own: orders that the backup still has are booked by them; others by their payees: payouts that waited first, oldest first, as every
batch takes them; what is beyond those was earned by jobs that the backup does not know, and comes from what the client has free.

Jobs that wait in the backup may have run since: they are cancelled, for running them again would charge their clients twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from solders.pubkey import Pubkey
from sqlalchemy import select

from torg_chain.captures import LandedCapture
from torg_chain.vault import token_account_of
from torg_marketplace.flow.earnings import FEE_ADDRESS
from torg_marketplace.flow.ending import end_queued
from torg_marketplace.flow.landed import order_of
from torg_marketplace.flow.reconcile import reconcile, unblock
from torg_marketplace.flow.settlement_moves import adopt, bury, finish_payouts, release_commitments
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.storage import ledger
from torg_marketplace.storage.models import JobRow, NodeRow
from torg_marketplace.storage.money_models import PayoutRow, SettlementRow, VaultRow
from torg_protocol.errors import Conflict, TorgError
from torg_protocol.states import EndReason, JobState, PayoutState, SettlementState

log = logging.getLogger(__name__)
_WHY_CANCELLED = "the marketplace was restored from a backup and does not know whether it ran: submit it again"


@dataclass(frozen=True, slots=True)
class Recovered:
    """One capture that was booked. `known`: base units of it that payouts in the backup waited for."""

    vault: str
    signature: str
    paid: int
    known: int


async def recover(market: Market) -> list[Recovered]:
    """Safe to repeat. Raises ChainUnavailable; Conflict recovery_waits when leases of the backup still hold what was captured."""
    await _cancel_waiting(market)
    async with market.reading() as unit:
        vaults = (await unit.session.scalars(select(VaultRow.address).where(VaultRow.closed.is_(False)))).all()
    found = []
    for vault in vaults:
        found += await _recover_vault(market, vault)
        try:
            await refresh_vault(market, vault)
        except TorgError as problem:
            log.warning("vault %s cannot be used: %s", vault, problem)
    differing = {difference.vault for difference in await reconcile(market)}
    for vault in {item.vault for item in found} - differing:
        await unblock(market, vault, because="its captures since the backup are booked")
    return found


async def _cancel_waiting(market: Market) -> None:
    async with market.transaction() as unit:
        for job in (await unit.session.scalars(select(JobRow).where(JobRow.state == JobState.QUEUED))).all():
            job.cancel_requested_at_ms = unit.now_ms
            await end_queued(unit, job, EndReason.CANCELLED, _WHY_CANCELLED)


async def _recover_vault(market: Market, vault: str) -> list[Recovered]:
    async with market.reading() as unit:
        booked = (await unit.session.get_one(VaultRow, vault)).chain_settled
    found = []
    config = await market.chain.operator_config(market.network.operator_pubkey)
    fees = str(token_account_of(config.fee_owner, market.network.mint_pubkey)) if config is not None else ""
    for capture in await market.chain.landed_captures(market.network.program_pubkey, vault, from_settled=booked):
        async with market.transaction() as unit:
            row = await unit.session.get_one(VaultRow, vault, with_for_update=True)
            if capture.arguments.expected_settled != row.chain_settled:
                continue  # booked meanwhile
            order = await order_of(unit, capture)
            if row.active_settlement not in (None, order.settlement_id if order is not None else None):
                await bury(unit, str(row.active_settlement), f"{capture.signature} landed after the backup")
            if order is not None:
                await adopt(unit, order.settlement_id, capture)
                known = capture.paid
            else:
                known = await _book(unit, row, capture, fees)
            found.append(Recovered(vault, capture.signature, capture.paid, known))
    return found


async def _book(unit: Unit, vault: VaultRow, capture: LandedCapture, fees: str) -> int:
    """A capture whose order the backup does not have, as a settlement of its own."""
    payees = [payee for index, payee in enumerate(capture.arguments.payees) if index not in capture.skipped]
    addresses = await _addresses(unit, vault, fees)
    settlement_id = unit.new_id("settle")
    entries, paid_now, known = [], list[PayoutRow](), 0
    for account, amount in payees:
        waiting = await _waiting(unit, vault, addresses.get(account), amount, paid_now)
        covered = sum(payout.amount for payout in waiting)
        if covered:
            source = ledger.payable(vault.address, waiting[0].payout_address)
            entries.append(ledger.Entry(source, -covered))
        paid_now += waiting
        known += covered
    unknown = capture.paid - known
    if unknown > await ledger.balance(unit.session, ledger.free(vault.address)):
        raise Conflict(
            "what was captured is still held by leases of the backup",
            code="recovery_waits",
            field="vault",
            value=vault.address,
            hint="let the marketplace run until they have ended, then repeat this",
        )
    unit.session.add(_settlement(settlement_id, unit, vault, capture, payees, paid_now))
    await unit.session.flush()
    if unknown:
        entries.append(ledger.Entry(ledger.free(vault.address), -unknown))
    entries.append(ledger.Entry(ledger.chain(vault.address), capture.paid))
    cause = f"captured by {capture.signature}, after the backup"
    await ledger.post(unit.session, key=f"capture:{settlement_id}", cause=cause, entries=entries, at_ms=unit.now_ms)
    await finish_payouts(unit, paid_now, settlement_id)
    vault.chain_settled += capture.paid
    vault.chain_balance -= capture.paid
    vault.chain_slot = max(vault.chain_slot, capture.slot)
    vault.final_total += unknown
    vault.active_settlement = None
    await unit.session.flush()
    await release_commitments(unit, vault.address)
    log.warning(
        "booked %s of vault %s: %s, of which %s were known", capture.signature, vault.address, capture.paid, known
    )
    return known


def _settlement(
    settlement_id: str,
    unit: Unit,
    vault: VaultRow,
    capture: LandedCapture,
    payees: list[tuple[str, int]],
    payouts: list[PayoutRow],
) -> SettlementRow:
    return SettlementRow(
        settlement_id=settlement_id,
        vault=vault.address,
        state=SettlementState.FINALIZED,
        expected_settled=capture.arguments.expected_settled,
        amount=capture.paid,
        payees=[list(payee) for payee in payees],
        token_accounts=[account for account, _ in payees],
        payout_ids=[payout.payout_id for payout in payouts],
        root=f"sha256:{capture.arguments.root.hex()}",
        raw=b"",
        signature=capture.signature,
        last_valid_block_height=0,
        created_at_ms=unit.now_ms,
        detail="booked after a backup was restored",
        outcome={"paid": capture.paid, "skipped": []},
    )


async def _addresses(unit: Unit, vault: VaultRow, fees: str) -> dict[str, str]:
    """Token account -> payout address, of everybody who is known to be paid."""
    mint = unit.market.network.mint_pubkey
    waiting = select(PayoutRow.payout_address).where(PayoutRow.vault == vault.address).distinct()
    known = set(await unit.session.scalars(waiting))
    known |= {str(offer["payout_address"]) for offer in await unit.session.scalars(select(NodeRow.offer))}
    found = {str(token_account_of(Pubkey.from_string(item), mint)): item for item in known - {FEE_ADDRESS}}
    return found | {fees: FEE_ADDRESS}


async def _waiting(
    unit: Unit, vault: VaultRow, address: str | None, amount: int, taken: list[PayoutRow]
) -> list[PayoutRow]:
    """The oldest payouts of an address that fit into the amount."""
    if address is None:
        return []
    query = select(PayoutRow).where(
        PayoutRow.vault == vault.address,
        PayoutRow.payout_address == address,
        PayoutRow.state == PayoutState.PENDING,
    )
    found: list[PayoutRow] = []
    for payout in await unit.session.scalars(query.order_by(PayoutRow.created_at_ms, PayoutRow.payout_id)):
        if payout not in taken and payout.amount <= amount:
            found.append(payout)
            amount -= payout.amount
    return found
