"""Money on a simulated chain: captures, slashes, the comparison of books and chain, and what others do to both meanwhile."""

from __future__ import annotations

import contextlib
import random

from solders.pubkey import Pubkey

from torg_chain.errors import ChainUnavailable
from torg_chain.vault import token_account_of
from torg_marketplace.flow.collateral import look_at_collaterals
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.slash import advance_slashes
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.simulation.promises import Parties
from torg_marketplace.simulation.tables import look
from torg_marketplace.simulation.world import World
from torg_protocol.errors import Unavailable


async def settle(world: World, *, hurry: bool) -> None:
    try:
        await settle_due(world.market, hurry=hurry)
        await advance_settlements(world.market)
    except (ChainUnavailable, Unavailable):
        pass  # the worker logs it and comes back


async def look_at_vaults(parties: Parties, chance: random.Random) -> None:
    """What an owner's page and the watcher do at any moment; and a payee may be tired of waiting for its order."""
    world = parties.world
    query = "SELECT raw, vault FROM settlements ORDER BY created_at_ms DESC, settlement_id LIMIT 2"
    orders = look(world.database).all(query)
    if orders and chance.random() < 0.15:
        raw, vault = chance.choice(orders)
        world.chain.land(raw, vault)
    if world.keeps_house and chance.random() < 0.3:  # by any wallet, in the middle of a capture perhaps
        chance.choice(parties.clients).receive(chance.randrange(1, 1_000))
    if chance.random() < 0.5:
        with contextlib.suppress(ChainUnavailable):
            await refresh_vault(world.market, chance.choice(parties.clients).vault)


def spoil_accounts(parties: Parties, chance: random.Random) -> None:
    """Somebody's token account is closed or frozen for a while, or whole again."""
    chain, mint = parties.world.chain, parties.world.market.network.mint_pubkey
    chain.unpayable.clear()
    if chance.random() < 0.4:
        wallets = [Pubkey.from_string(node.offer.payout_address) for node in parties.nodes]
        chain.unpayable.add(token_account_of(chance.choice([*wallets, chain.fee_owner]), mint))


async def slash(world: World) -> None:
    try:
        await look_at_collaterals(world.market)
        await advance_slashes(world.market)
    except ChainUnavailable:
        pass


async def reconcile_books(world: World) -> None:
    lag, world.chain.lag = world.chain.lag, 0.0  # what lags behind the books is a difference for it, and rightly so
    try:
        differences = await reconcile(world.market)
    except ChainUnavailable:
        return
    finally:
        world.chain.lag = lag
    if differences:
        raise AssertionError(f"books and chain differ: {'; '.join(map(str, differences))}")
