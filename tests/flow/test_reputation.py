"""Each change of a reputation is kept with its reason."""

from __future__ import annotations

import pytest

from tests.support.actors import join, make_client
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.reputation import node_reputation
from torg_marketplace.flow.verify import verify_pending
from torg_protocol.errors import NotFound
from torg_protocol.ids import NodeId
from torg_protocol.states import EndReason


async def test_a_failed_verification_is_shown_with_its_reason(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await client.submit(metric_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    await node.finish(outputs={"model.safetensors": b"weights"})
    lease_id = node.lease.grant.lease_id
    world.evaluator.will_measure(accuracy="0.1")
    await verify_pending(world.market)
    node.read()

    async with world.market.reading() as unit:
        found = await node_reputation(unit, node.id)
    last, first = found.changes
    assert (first.because, first.was_permille, first.now_permille) == (EndReason.COMPLETED, 1000, 1000)
    assert (last.because, last.lease_id) == (EndReason.VERIFICATION_REJECTED, lease_id)
    assert last.now_permille == found.permille < 1000
    assert found.leases_broken == 1


async def test_a_node_that_nobody_knows(world: World) -> None:
    async with world.market.reading() as unit:
        with pytest.raises(NotFound):
            await node_reputation(unit, NodeId("nobody"))
