"""The operator's own vault, out of which credit and replays by nodes are paid."""

from __future__ import annotations

from solders.keypair import Keypair

from tests.support.actors import TUSD
from tests.support.market import World
from tests.support.money import open_vault
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.storage.account_models import CreditVaultRow


async def open_credit_vault(world: World, key: Keypair, *, balance: int = 100 * TUSD) -> str:
    """`key` is to be the market's `credit_key`."""
    address = open_vault(
        world.chain, world.market.network, depositor=key.pubkey(), signer=key.pubkey(), balance=balance
    )
    await refresh_vault(world.market, address)
    async with world.market.transaction() as unit:
        unit.session.add(CreditVaultRow(address=address, opened_at_ms=unit.now_ms))
    return address
