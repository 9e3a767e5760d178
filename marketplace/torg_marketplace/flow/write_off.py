"""Write off: what a closed vault still owed can be paid by nobody any more, and the books say so.

A depositor may take the rest once the grace is over; whoever did not capture by then has lost it. Leaving such payouts PENDING would
keep a debt in the books that no chain will ever settle, and ranges that are never free.
"""

from __future__ import annotations

import logging

from sqlalchemy import select

from torg_marketplace.flow.landed import catch_up
from torg_marketplace.flow.settlement_moves import lose, release_commitments
from torg_marketplace.flow.unit import Market
from torg_marketplace.storage.money_models import PayoutRow, VaultRow
from torg_protocol.states import PayoutState

log = logging.getLogger(__name__)


async def write_off(market: Market) -> int:
    """Ends what waits in closed vaults; returns the base units. Orders that a payee landed before the closing are booked first, and
    while something is in motion nothing is written off. Safe to repeat. Raises ChainUnavailable."""
    async with market.reading() as unit:
        query = (
            select(PayoutRow.vault)
            .join(VaultRow, VaultRow.address == PayoutRow.vault)
            .where(PayoutRow.state == PayoutState.PENDING, VaultRow.closed, VaultRow.active_settlement.is_(None))
        )
        vaults = (await unit.session.scalars(query.distinct())).all()
    return sum([await _write_off_vault(market, vault) for vault in vaults])


async def _write_off_vault(market: Market, vault: str) -> int:
    if not await catch_up(market, vault):
        return 0
    async with market.transaction() as unit:
        row = await unit.session.get_one(VaultRow, vault, with_for_update=True)
        if row.active_settlement is not None or row.blocked:
            return 0
        query = select(PayoutRow).where(PayoutRow.vault == vault, PayoutRow.state == PayoutState.PENDING)
        payouts = (await unit.session.scalars(query)).all()
        for payout in payouts:
            await lose(unit, payout)
        await unit.session.flush()
        await release_commitments(unit, vault)
        lost = sum(payout.amount for payout in payouts)
    log.error("vault %s was closed while %s base units were earned and not captured: they are lost", vault, lost)
    return lost
