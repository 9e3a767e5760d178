"""Landed: brings the books up to what the chain has captured, whoever submitted it.

A payee may hold an order of ours and land it itself, also one whose own transaction we have buried. Each landed capture is
matched with a stored order, argument by argument. One that matches none was not ordered by us: nothing is guessed, the vault is blocked.
"""

from __future__ import annotations

import logging

from sqlalchemy import select

from torg_chain.captures import LandedCapture
from torg_chain.errors import ChainBehind, ChainUnavailable
from torg_marketplace.flow.settlement_moves import adopt, bury
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.money_models import SettlementRow, VaultRow
from torg_marketplace.storage.moves import MovedMeanwhile

log = logging.getLogger(__name__)


async def catch_up(market: Market, vault: str) -> bool:
    """True when the vault's total in the books is now the chain's, every step explained. Safe to repeat, and for two at once.

    False while something is still in motion, when the chain's answer is older than the books, or when the vault was blocked. Raises
    ChainUnavailable.

    The total is read before the captures that explain it, which must reach at least as far: behind one address there may be many RPC nodes,
    and some lag.
    """
    async with market.reading() as unit:
        row = await unit.session.get_one(VaultRow, vault)
        booked, seen = row.chain_settled, row.chain_slot
    program = market.network.program_pubkey
    try:
        state = await market.chain.vault(vault, min_slot=seen)
        reached = state.slot if state is not None else seen
        landed = await market.chain.landed_captures(program, vault, from_settled=booked, min_slot=reached)
    except ChainUnavailable as error:
        if error.code in {"vault_in_motion", ChainBehind.default_code}:
            return False
        raise
    for capture in landed:
        try:
            async with market.transaction() as unit:
                if not await _apply(unit, vault, capture):
                    return False
        except MovedMeanwhile:
            return False  # the settlement worker applies the same capture at this moment
    async with market.transaction() as unit:
        row = await unit.session.get_one(VaultRow, vault)
        if state is None or state.settled == row.chain_settled:
            return True
        if landed or row.active_settlement is not None or state.settled < row.chain_settled:
            return False  # what has landed since the total was read is booked already, or will be
        _block(row, f"settled on chain is {state.settled}, in the books {row.chain_settled}, and no capture says why")
        return False


async def _apply(unit: Unit, vault: str, capture: LandedCapture) -> bool:
    row = await unit.session.get_one(VaultRow, vault, with_for_update=True)
    if capture.arguments.expected_settled < row.chain_settled:
        return True  # booked already
    order = await order_of(unit, capture)
    if order is None or capture.arguments.expected_settled != row.chain_settled:
        _block(row, f"{capture.signature} captured {capture.paid} by an order that is not in the books")
        return False
    if row.active_settlement not in (None, order.settlement_id):
        await bury(unit, row.active_settlement, f"{capture.signature} was faster with an older order")
    await adopt(unit, order.settlement_id, capture)
    return True


async def order_of(unit: Unit, capture: LandedCapture) -> SettlementRow | None:
    """The stored order that a landed capture carried out, argument by argument; None when there is none."""
    wanted = capture.arguments
    query = select(SettlementRow).where(
        SettlementRow.vault == wanted.vault,
        SettlementRow.expected_settled == wanted.expected_settled,
        SettlementRow.root == f"sha256:{wanted.root.hex()}",
    )
    for row in await unit.session.scalars(query.order_by(SettlementRow.created_at_ms.desc())):
        amounts = [amount for _, amount in row.payees]
        if tuple(zip(row.token_accounts, amounts, strict=False)) == wanted.payees:
            return row
    return None


def _block(row: VaultRow, why: str) -> None:
    row.blocked = why
    log.error("payouts of vault %s are stopped: %s", row.address, why)
