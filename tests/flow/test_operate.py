"""The operator suspends nodes, takes it back, and looks things up."""

from __future__ import annotations

import pytest

from tests.support.actors import join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import inspect_anything, resume_node, suspend_node
from torg_marketplace.flow.rows import node_row
from torg_marketplace.storage.moves import move_node
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import NodeId
from torg_protocol.messages import Granted, Stop
from torg_protocol.states import JobState, LeaseState, NodeState


async def test_a_suspended_node_gets_no_lease_until_it_is_resumed(world: World) -> None:
    node, client = await join(world), await make_client(world)
    async with world.market.transaction() as unit:
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)  # safe to repeat
    other = await join(world, price=2_000_000)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    other.expect(Granted)
    await node.heartbeat()  # nor does it come back by itself
    async with world.market.transaction() as unit:
        assert (await resume_node(unit, node.id, because="it was steam"))["state"] == NodeState.ACTIVE
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    node.expect(Granted)
    async with world.market.reading() as unit:
        known = await inspect_anything(unit, node.id)
        of_job = await inspect_anything(unit, job.job_id)
    details = [event["data"].get("detail") for event in known["events"]]
    assert "by the operator: smoke was seen" in details
    assert "by the operator: it was steam" in details
    assert of_job["job"]["state"] == JobState.LEASED
    assert [lease["node_id"] for lease in of_job["leases"]] == [other.id]


async def test_its_leases_end_with_a_checkpoint_when_they_are_to_stop(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    async with world.market.transaction() as unit:
        answer = await suspend_node(unit, node.id, because="maintenance", stop=True)
    node.expect(Stop)
    async with world.market.reading() as unit:
        lease = await inspect_anything(unit, answer["leases"][0])
    assert (lease["lease"]["state"], lease["lease"]["stop_reason"]) == (LeaseState.STOPPING, "drained")
    assert [said["event"]["body"]["kind"] for said in lease["said"]] == ["started", "accepted"]
    assert (await client.job(job.job_id)).state is JobState.LEASED


async def test_what_cannot_be_done_says_why(world: World) -> None:
    node = await join(world)
    async with world.market.transaction() as unit:
        with pytest.raises(Conflict) as refused:
            await resume_node(unit, node.id, because="x")
        assert refused.value.code == "node_not_suspended"
        with pytest.raises(Invalid) as wordless:
            await suspend_node(unit, node.id, because=" ", stop=False)
        assert wordless.value.code == "because_missing"
        with pytest.raises(NotFound) as unknown:
            await inspect_anything(unit, "job_nobody")
        assert unknown.value.code == "nothing_known"
        with pytest.raises(NotFound) as nobody:
            await suspend_node(unit, NodeId("nobody"), because="x", stop=False)
        assert nobody.value.code == "node_unknown"
        await move_node(
            unit.session, await node_row(unit, node.id), NodeState.SUSPENDED, at_ms=unit.now_ms, detail="by a proof"
        )
        await unit.session.flush()
        with pytest.raises(Conflict) as banned:
            await resume_node(unit, node.id, because="x")
        assert banned.value.code == "node_banned"
