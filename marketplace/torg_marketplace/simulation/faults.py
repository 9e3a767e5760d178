"""What goes wrong with nodes and with the marketplace itself, as steps of a simulated market."""

from __future__ import annotations

import random

from sqlalchemy import select

from torg_marketplace.flow.grant import grant
from torg_marketplace.flow.liveness import on_startup
from torg_marketplace.simulation.node import SimulatedNode
from torg_marketplace.simulation.plan import Kind
from torg_marketplace.simulation.promises import Parties
from torg_marketplace.simulation.world import World
from torg_marketplace.storage.models import JobRow
from torg_protocol.errors import TorgError


async def fail(node: SimulatedNode, kind: Kind, chance: random.Random) -> None:
    """A node's bad moment."""
    match kind:
        case Kind.CRASH if node.online:
            await node.crash(forgets=chance.random() < 0.4, noticed=chance.random() < 0.5)
        case Kind.CUT_OFF if node.online:
            await node.cut_off(noticed=chance.random() < 0.5)
        case Kind.STALL:
            node.stall(chance.choice([20_000, 45_000, 400_000]))
        case Kind.DRAIN:
            node.draining = not node.draining
        case _:
            pass


async def stale_grant(world: World, node: SimulatedNode, chance: random.Random) -> None:
    async with world.market.reading() as unit:
        job_ids = (await unit.session.scalars(select(JobRow.job_id).order_by(JobRow.job_id))).all()
    if not job_ids:
        return
    try:
        async with world.market.transaction() as unit:
            await grant(unit, await unit.session.get_one(JobRow, chance.choice(job_ids)), [node.id])
    except TorgError:
        pass


async def outage(parties: Parties, chance: random.Random) -> None:
    """The marketplace is killed and comes back; all connections are gone, containers run on."""
    parties.world.advance(chance.choice([1_000, 60_000, 900_000]))
    for node in parties.nodes:
        node.online = False
        parties.world.links.disconnect(node.id)
    parties.world.restart()
    await on_startup(parties.world.market)
    for node in parties.nodes:
        node.has_gone = True
    parties.started_ms = parties.awake_ms = parties.world.clock.time_ms
