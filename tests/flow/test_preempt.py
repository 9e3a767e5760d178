"""Spot leases: their price, whom they make room for, and what that costs whom."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, make_node, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.prices import prices, publish_prices
from torg_protocol.api import JobView
from torg_protocol.errors import Infeasible
from torg_protocol.messages import Granted, Released, Stop
from torg_protocol.offers import Offer
from torg_protocol.states import EndReason, JobState, LeaseState

PRICE, SPOT_PRICE = 3_600_000, 1_800_000  # one base unit per millisecond, and half of that
CHECKPOINTS: dict[str, Any] = {"checkpoint": {"enabled": True}}


async def spot_node(world: World, *, price: int = PRICE, spot_price: int | None = SPOT_PRICE, **offer: Any) -> Node:
    node = make_node(world, price=price, **offer)
    node.offer = Offer.model_validate(node.offer.wire() | {"spot_price_per_gpu_hour": spot_price})
    await node.connect()
    return node


async def running_spot_job(world: World, **changes: Any) -> tuple[Client, Node, JobView]:
    client, node = await make_client(world), await spot_node(world)
    job = await client.submit(spec(spot=True, **CHECKPOINTS, **changes))
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    return client, node, job


async def make_room(node: Node) -> None:
    """What a node does when it is asked to."""
    (stop,) = [message for message in node.read() if isinstance(message, Stop)]
    assert (stop.reason, stop.grace_ms) == (EndReason.PREEMPTED, 120_000)
    await node.checkpoint("last")
    await node.ok(Released(reason=EndReason.PREEMPTED))
    node.read()


async def test_a_spot_job_pays_the_spot_price_and_holds_no_more(world: World) -> None:
    client, node = await make_client(world), await spot_node(world)
    await join(world, price=PRICE // 10)  # cheaper than that, and takes no spot jobs
    quote = await client.quote(spec(spot=True))
    assert (quote.nodes_considered, quote.dearest_price_per_gpu_hour, quote.max_amount) == (1, SPOT_PRICE, SPOT_PRICE)
    job = await client.submit(spec(spot=True))
    assert await match_pending(world.market) == 1

    granted = node.expect(Granted).signed.grant
    assert (granted.price_per_gpu_hour, granted.max_amount, granted.job_id) == (SPOT_PRICE, SPOT_PRICE, job.job_id)


async def test_where_nobody_takes_spot_jobs_that_is_said(world: World) -> None:
    client = await make_client(world)
    await join(world)
    with pytest.raises(Infeasible) as refused:
        await client.submit(spec(spot=True))

    assert refused.value.message == "no node here takes spot jobs"
    assert refused.value.hint == "leave spot out: nodes with a spot price are marked in torg offers"


async def test_a_job_at_the_full_price_gets_the_room_and_the_spot_job_comes_again(world: World) -> None:
    client, node, cheap = await running_spot_job(world, retry={"max_attempts": 1})
    await let_pass(world, seconds=90, nodes=(node,))
    urgent = await client.submit(spec())
    assert await match_pending(world.market) == 0
    assert (await client.job(urgent.job_id)).waiting_for == "1 spot lease(s) make room for it"
    assert await match_pending(world.market) == 0  # once is enough
    await make_room(node)

    assert await match_pending(world.market) == 1
    assert (await client.job(urgent.job_id)).state is JobState.LEASED
    view = await client.job(cheap.job_id)
    (lease,) = view.leases
    assert (view.state, lease.reason) == (JobState.QUEUED, EndReason.PREEMPTED)  # its one attempt is not used up
    assert (lease.billed_ms, lease.amount) == (90_000, 45_000)
    await node.accept_and_start()
    await node.finish()
    node.read()
    assert await match_pending(world.market) == 1
    resumed = node.expect(Granted).signed.grant
    assert resumed.resume_from is not None
    assert (resumed.job_id, resumed.resume_from.name) == (cheap.job_id, "last")


async def test_spot_never_makes_room_for_spot(world: World) -> None:
    client, node, _ = await running_spot_job(world)
    await let_pass(world, seconds=90, nodes=(node,))
    await client.submit(spec(spot=True, limits={"max_price_per_hour": "9"}))

    assert await match_pending(world.market) == 0
    assert node.read() == []


async def test_a_spot_lease_is_left_alone_at_first_and_longer_each_time(world: World) -> None:
    client, node, cheap = await running_spot_job(world, limits={"queue_timeout": "1h"})
    for protected_s in (60, 120):
        urgent = await client.submit(spec(limits={"queue_timeout": "1h"}))
        await let_pass(world, seconds=protected_s - 10, nodes=(node,))
        await match_pending(world.market)
        assert node.read() == []
        await let_pass(world, seconds=10, nodes=(node,))
        await match_pending(world.market)
        await make_room(node)
        assert await match_pending(world.market) == 1
        await node.accept_and_start()
        await node.finish()
        node.read()
        assert (await client.job(urgent.job_id)).state is JobState.SUCCEEDED
        assert await match_pending(world.market) == 1
        await node.accept_and_start()

    assert len((await client.job(cheap.job_id)).leases) == 3


async def test_what_has_not_started_makes_room_at_once(world: World) -> None:
    client, node = await make_client(world), await spot_node(world)
    await client.submit(spec(spot=True))
    await match_pending(world.market)
    await node.accept()
    urgent = await client.submit(spec())
    await match_pending(world.market)
    await node.ok(Released(reason=EndReason.PREEMPTED))
    node.read()

    assert await match_pending(world.market) == 1
    assert (await client.job(urgent.job_id)).state is JobState.LEASED
    node.read()


async def test_nothing_is_stopped_for_a_job_that_could_not_run_there(world: World) -> None:
    client, node, _ = await running_spot_job(world)
    other = await join(world, gpus=1)
    await client.submit(spec(resources={"gpus": 1}))
    await match_pending(world.market)
    await other.accept_and_start()
    await let_pass(world, seconds=90, nodes=(node, other))
    await client.submit(spec(resources={"gpus": 1}))

    assert await match_pending(world.market) == 0
    assert node.read() == []


async def test_a_node_that_says_preempted_by_itself_is_to_blame(world: World) -> None:
    client, node, cheap = await running_spot_job(world)
    await node.ok(Released(reason=EndReason.PREEMPTED))
    node.read()

    (lease,) = (await client.job(cheap.job_id)).leases
    assert (lease.state, lease.reason) == (LeaseState.RELEASED, EndReason.HOST_PROTECTION)


async def test_cancelled_while_it_makes_room_the_node_is_not_to_blame(world: World) -> None:
    client, node, cheap = await running_spot_job(world)
    await let_pass(world, seconds=90, nodes=(node,))
    await client.submit(spec())
    await match_pending(world.market)
    await client.cancel(cheap.job_id)
    await node.ok(Released(reason=EndReason.PREEMPTED))
    node.read()

    view = await client.job(cheap.job_id)
    assert (view.state, view.leases[0].reason) == (JobState.CANCELLED, EndReason.PREEMPTED)


async def test_a_quote_at_the_full_price_counts_with_the_room_that_spot_makes(world: World) -> None:
    client, node, _ = await running_spot_job(world)
    await let_pass(world, seconds=90, nodes=(node,))
    quote = await client.quote(spec())

    assert quote.start is not None
    assert quote.start.room_latest_ms == 120_000
    assert "spot leases make room within 120 s" in quote.start.basis[0]
    spot = await client.quote(spec(spot=True))
    assert spot.start is not None
    assert (spot.start.room_latest_ms or 0) > 3_000_000


async def test_spot_jobs_have_no_say_in_the_reference_price(world: World) -> None:
    client, node = await make_client(world), await spot_node(world)
    await client.submit(spec(spot=True, limits={"max_price_per_hour": "9"}))
    await publish_prices(world.market)

    async with world.market.reading() as unit:
        (found,) = await prices(unit)
    assert (found.best_bid, found.best_ask) == (None, PRICE)
    assert node.read() == []


async def test_of_a_gang_all_get_room_or_nobody_is_stopped(world: World) -> None:
    client, nodes = await make_client(world), [await spot_node(world) for _ in range(2)]
    for _ in nodes:
        await client.submit(spec(spot=True, **CHECKPOINTS))
    assert await match_pending(world.market) == 2
    for node in nodes:
        await node.accept()
    await nodes[0].start()
    await let_pass(world, seconds=70, nodes=tuple(nodes))
    await nodes[1].start()  # protected: it has run for less than a minute
    gang = await client.submit(spec(gang={"size": 2}))
    await match_pending(world.market)
    assert not any(isinstance(message, Stop) for node in nodes for message in node.read())

    await let_pass(world, seconds=70, nodes=tuple(nodes))
    for node in nodes:
        node.read()
    await match_pending(world.market)
    assert (await client.job(gang.job_id)).waiting_for == "2 spot lease(s) make room for it"
    for node in nodes:
        await make_room(node)
    assert await match_pending(world.market) == 1
    assert (await client.job(gang.job_id)).state is JobState.LEASED
    for node in nodes:
        node.expect(Granted)
