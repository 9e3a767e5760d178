"""Some GPUs of a node are broken or too hot: the marketplace is told, and gives the others away only."""

from __future__ import annotations

from typing import Any

from tests.flow.test_preempt import spot_node
from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.nodes import on_hello
from torg_marketplace.flow.pulse import Pulse
from torg_marketplace.flow.views import node_views
from torg_protocol.messages import Granted, Heartbeat
from torg_protocol.states import JobState

GPU = {"gpus": 1}


async def say(node: Node, *gpus_out: str) -> None:
    """By a heartbeat, as they come."""
    pulse, now_ms = Pulse(), node.world.clock.now_ms()
    pulse.beat(node.id, Heartbeat(at_ms=now_ms, leases=node._held_leases(), gpus_out=gpus_out), now_ms)
    await pulse.renew(node.world.market)


async def test_a_job_does_not_go_to_a_node_whose_only_free_gpu_is_too_hot(world: World) -> None:
    near, client = await join(world, gpus=2, price=1_000_000), await make_client(world)
    await say(near, "GPU-1")
    far = await join(world, gpus=1, price=2_000_000)
    for name in ("first", "second"):
        await client.submit(spec(name=name, resources=GPU))
    assert await match_pending(world.market) == 2
    near.expect(Granted)
    far.expect(Granted)


async def test_an_offer_says_how_many_gpus_are_free_and_how_many_are_out(world: World) -> None:
    _, node = await running_on_the_hot_gpu(world)

    async def offered() -> tuple[int, int | None, int]:
        async with world.market.reading() as unit:
            (offer,) = await node_views(unit)
        return offer.gpus, offer.gpus_free, offer.gpus_out

    assert await offered() == (2, 1, 0)  # a lease holds the one that is out
    await say(node, "GPU-0", "GPU-1")
    assert await offered() == (2, 0, 1)
    await say(node)
    assert await offered() == (2, 1, 0)


async def test_what_waits_begins_when_the_gpu_is_back(world: World) -> None:
    node, client = await join(world, gpus=2), await make_client(world)
    await say(node, "GPU-0")
    job = await client.submit(spec(resources={"gpus": 2}))
    assert await match_pending(world.market) == 0
    waiting = await client.job(job.job_id)
    assert (waiting.state, waiting.waiting_for) == (JobState.QUEUED, "all 1 fitting node(s) are busy")
    await say(node)
    assert await match_pending(world.market) == 1
    node.expect(Granted)


async def test_a_hello_says_it_too(world: World) -> None:
    node, client = await join(world, gpus=1), await make_client(world)
    async with world.market.transaction() as unit:
        await on_hello(unit, node.id, node.hello().model_copy(update={"gpus_out": ("GPU-0",)}))
    await client.submit(spec(resources=GPU))
    assert await match_pending(world.market) == 0
    await node.connect()
    assert await match_pending(world.market) == 1
    node.read()


async def running_on_the_hot_gpu(world: World) -> tuple[Client, Node]:
    """Which GPU a lease got is its node's choice, and said when it starts."""
    node, client = await join(world, gpus=2), await make_client(world)
    await client.submit(spec(name="first", resources=GPU))
    assert await match_pending(world.market) == 1
    await node.accept()
    await node.start(gpu_uuids=("GPU-1",))
    await say(node, "GPU-1")
    return client, node


async def test_a_hot_gpu_that_a_lease_holds_takes_no_second_one_away(world: World) -> None:
    client, node = await running_on_the_hot_gpu(world)
    await client.submit(spec(name="second", resources=GPU))
    assert await match_pending(world.market) == 1
    node.read()


async def test_a_hot_gpu_whose_lease_has_ended_is_not_given_away(world: World) -> None:
    client, node = await running_on_the_hot_gpu(world)
    await node.finish()
    node.read()
    for name in ("second", "third"):
        await client.submit(spec(name=name, resources=GPU))
    assert await match_pending(world.market) == 1
    node.read()


async def test_a_part_of_a_gpu_is_given_of_one_that_is_fit(world: World) -> None:
    node, client = await join(world, gpus=2, gpu_slices=2), await make_client(world)
    await say(node, "GPU-0")
    half: dict[str, Any] = {"gpus": 1, "gpu_fraction": "0.5"}
    for name in ("first", "second", "third"):
        await client.submit(spec(name=name, resources=half))
    assert await match_pending(world.market) == 2
    node.read()


async def test_no_spot_job_makes_room_on_a_gpu_that_is_out(world: World) -> None:
    node, client = await spot_node(world, gpus=1), await make_client(world)
    await client.submit(spec(spot=True, resources=GPU))
    assert await match_pending(world.market) == 1
    await node.accept()
    await node.start(gpu_uuids=("GPU-0",))
    await let_pass(world, seconds=600, nodes=(node,))
    await say(node, "GPU-0")
    await client.submit(spec(name="dear", resources=GPU))
    assert await match_pending(world.market) == 0
    assert node.read() == []
