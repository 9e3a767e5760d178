"""Clients that leave: they begin to close their vaults, in the middle of everything or when it is over, and take the rest after the grace."""

from __future__ import annotations

import random

from torg_marketplace.flow.reconcile import watch_vaults
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.simulation.client import SimulatedClient
from torg_marketplace.simulation.tables import look
from torg_marketplace.simulation.world import World

_GRACE_OVER_MS = 25 * 3_600_000


async def begin_to_leave(world: World, client: SimulatedClient) -> None:
    """Only once the marketplace has seen it, it must act upon it."""
    if client.leaves_since_ms is not None or world.chain.down:
        return
    world.chain.start_close(client.vault)
    await refresh_vault(world.market, client.vault)
    client.leaves_since_ms = world.clock.time_ms


async def all_leave(world: World, clients: list[SimulatedClient], chance: random.Random) -> list[str]:
    """In the end, when all is paid. Each has back what it did not spend, and no job is taken any more, neither in the grace nor after it."""
    said = []
    for client in clients:
        await begin_to_leave(world, client)
        said += await client.submit(chance)
    world.advance(_GRACE_OVER_MS)
    for client in clients:
        world.chain.finish_close(client.vault)
    await watch_vaults(world.market)
    tables = look(world.database)
    for client in clients:
        said += await client.submit(chance)
        for account in ("free", "chain"):
            query = "SELECT COALESCE(SUM(amount), 0) FROM ledger_entries WHERE account = ?"
            ((left,),) = tables.all(query, f"{account}:{client.vault}")
            if left:
                said.append(f"{client.vault} is closed, and {left} are left in {account} of it")
    return said
