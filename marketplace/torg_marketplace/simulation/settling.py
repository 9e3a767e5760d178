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

_UNTIL_CONFIRMED_MS = 2_000
_STORMY_ROUNDS = 5


async def settle(world: World, *, hurry: bool) -> None:
    try:
        await settle_due(world.market, hurry=hurry)
        await advance_settlements(world.market)
    except (ChainUnavailable, Unavailable):
        return  # the worker logs it and comes back
    said = world.database.execute("SELECT signature FROM settlements WHERE state = 'confirmed'").fetchall()
    if untrue := [signature for (signature,) in said if not world.chain.is_confirmed(signature)]:
        raise AssertionError(f"{untrue[0]} counts as confirmed, and is not on the chain")


async def settle_step(parties: Parties, chance: random.Random) -> None:
    """The worker's turn; before and after it, what else may happen while a capture is in the air."""
    world = parties.world
    hurry, other = chance.random() < 0.3, random.Random(world.clock.time_ms)
    await _deposit_in_the_air(parties, other)
    await settle(world, hurry=hurry)
    if _in_the_air(world) and other.random() < 0.4:
        world.advance(_UNTIL_CONFIRMED_MS)
        await settle(world, hurry=False)
        if other.random() < 0.5:  # what was confirmed never happened
            world.chain.fork()
    await _look_at_vaults(parties, chance)


async def _deposit_in_the_air(parties: Parties, chance: random.Random) -> None:
    """By any wallet, and seen before the books know what became of the capture."""
    vaults = _in_the_air(parties.world)
    for client in parties.clients:
        if client.vault in vaults and chance.random() < 0.5:
            client.receive(chance.randrange(1, 1_000))
            with contextlib.suppress(ChainUnavailable):
                await refresh_vault(parties.world.market, client.vault)


def _in_the_air(world: World) -> set[str]:
    query = "SELECT vault FROM settlements WHERE state IN ('built', 'unknown', 'confirmed')"
    return {str(vault) for (vault,) in world.database.execute(query)}


async def settle_in_the_end(parties: Parties, seed: int, number: int) -> None:
    """Deposits go on to come in between. In some markets the chain is the last to be well: what was confirmed never happened, and then nothing
    lands until those bytes are dead."""
    world, is_stormy = parties.world, seed % 3 == 0
    await _deposit_in_the_air(parties, random.Random(f"deposits of {seed} in round {number}"))
    await settle(world, hurry=True)
    if is_stormy and number == 0:
        world.advance(_UNTIL_CONFIRMED_MS)
        await settle(world, hurry=False)
        world.chain.fork(again=0.0)
    world.chain.lose = 1.0 if is_stormy and number < _STORMY_ROUNDS else 0.0


async def _look_at_vaults(parties: Parties, chance: random.Random) -> None:
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
