"""Nodes come, go, and come back with or without their memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from solders.pubkey import Pubkey

from tests.support.actors import TUSD, Node, join, let_pass, make_client, make_node, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.nodes import on_hello
from torg_marketplace.flow.views import node_view, node_views
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.messages import Accepted, Granted, ReceiptIssued, Stop
from torg_protocol.offers import SignedOffer
from torg_protocol.states import EndReason, JobState, LeaseState, NodeState


async def test_a_hello_registers_the_node_and_its_offer(world: World) -> None:
    node = make_node(world, price=2 * TUSD, gpus=2)
    welcome = await node.connect()

    assert welcome.marketplace == world.market.public_key
    assert (welcome.heartbeat_ms, welcome.leases) == (world.market.policy.heartbeat_ms, ())
    async with world.market.reading() as unit:
        (view,) = await node_views(unit)
    assert (view.node, view.state, view.price_per_gpu_hour, view.gpus) == (node.id, NodeState.ACTIVE, 2 * TUSD, 2)


async def test_a_newer_offer_replaces_an_older_one(world: World) -> None:
    node = await join(world, price=2 * TUSD)
    node.offer = node.offer.model_copy(update={"sequence": 2, "price_per_gpu_hour": TUSD})
    await node.connect()
    async with world.market.reading() as unit:
        assert (await node_view(unit, node.id)).price_per_gpu_hour == TUSD

    node.offer = node.offer.model_copy(update={"sequence": 1})
    with pytest.raises(Conflict) as caught:
        await node.connect()
    assert (caught.value.code, caught.value.data["offer_sequence"]) == ("offer_stale", 2)


async def test_offers_that_are_not_right_are_refused(world: World) -> None:
    node, other = make_node(world), make_node(world)
    stolen = node.hello().model_copy(
        update={"offer": SignedOffer(offer=other.offer, signature=other.offer.sign(other.key))}
    )
    forged = node.hello().model_copy(
        update={"offer": SignedOffer(offer=node.offer, signature=node.offer.sign(other.key))}
    )
    elsewhere = replace(node, offer=node.offer.model_copy(update={"marketplace": str(other.key.pubkey())})).hello()
    for hello in (stolen, forged, elsewhere):
        with pytest.raises(Invalid) as caught:
            async with world.market.transaction() as unit:
                await on_hello(unit, node.id, hello)
        assert caught.value.code == "offer_invalid"


async def test_simulated_hardware_is_for_localnets_only(world: World) -> None:
    node = make_node(world)
    assert node.offer.inventory.source == "simulated"
    mainnet = world.market.network.model_copy(update={"program_id": str(Pubkey.default())})
    elsewhere = replace(world.market, network=mainnet)
    with pytest.raises(Invalid) as caught:
        async with elsewhere.transaction() as unit:
            await on_hello(unit, node.id, node.hello())
    assert (caught.value.code, caught.value.field) == ("offer_simulated", "offer.inventory.source")

    real = node.offer.inventory.model_copy(update={"source": "cpu"})
    node.offer = node.offer.model_copy(update={"inventory": real})
    async with elsewhere.transaction() as unit:
        await on_hello(unit, node.id, node.hello())
    async with world.market.reading() as unit:
        assert [view.node for view in await node_views(unit)] == [node.id]


async def test_another_protocol_version_is_refused(world: World) -> None:
    node = make_node(world)
    with pytest.raises(Invalid) as caught:
        async with world.market.transaction() as unit:
            await on_hello(unit, node.id, node.hello().model_copy(update={"protocol_version": 99}))
    assert caught.value.code == "protocol_version_unknown"


async def test_a_heartbeat_before_a_hello_is_refused(world: World) -> None:
    with pytest.raises(NotFound) as caught:
        await make_node(world).heartbeat()
    assert caught.value.code == "node_unknown"


async def test_a_grant_that_got_lost_is_sent_again(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    world.links.take_all(node.id)  # lost on the way
    await node.heartbeat()
    first = node.expect(Granted)
    await node.disconnect()
    node.held.clear()
    await node.connect()
    assert node.expect(Granted) == first


async def test_a_node_that_kept_its_journal_goes_on(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    await node.disconnect()
    await let_pass(world, seconds=60)
    (directive,) = (await node.connect()).leases

    assert (directive.directive, directive.acknowledged) == ("continue", 2)
    await node.finish()
    node.read()
    assert (await client.job(job.job_id)).state is JobState.SUCCEEDED


async def test_a_node_that_lost_its_journal_has_lost_its_lease(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    node.held.clear()
    await node.connect()
    node.expect(ReceiptIssued)

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].reason) == (
        JobState.QUEUED,
        LeaseState.LOST,
        EndReason.NODE_LOST,
    )


async def test_time_in_which_a_lost_journal_s_node_was_away_is_no_lost_work(world: World) -> None:
    """Nobody knows that it worked after it was heard of last; that it is back now says nothing about its container."""
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    await let_pass(world, seconds=60, nodes=(node,))
    await node.disconnect()
    await let_pass(world, seconds=120)
    node.held.clear()
    await node.connect()
    node.expect(ReceiptIssued)

    (receipt,) = await client.receipts(job.job_id)
    assert (receipt.receipt.billed_ms, receipt.receipt.unbilled_ms) == (0, 60_000)


async def test_a_lease_that_went_to_another_is_abandoned(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec(lease_grace="60s"))
    await match_pending(world.market)
    await node.accept_and_start()
    await node.disconnect()
    await let_pass(world, seconds=60)
    (directive,) = (await node.connect()).leases

    assert directive.directive == "abandon"
    node.expect(ReceiptIssued)


async def test_a_receipt_that_got_lost_is_sent_again(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    await node.finish()
    world.links.take_all(node.id)
    (directive,) = (await node.connect()).leases

    assert directive.directive == "continue"
    node.expect(ReceiptIssued)
    assert node.held == {}


async def test_a_receipt_that_got_lost_on_the_bus_comes_with_a_later_heartbeat(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    await node.finish()
    lost = [message for message in world.links.take_all(node.id) if isinstance(message, ReceiptIssued)]
    await node.heartbeat()
    assert node.read() == []  # it was sent just now
    world.advance(ms=world.market.policy.heartbeat_ms)
    await node.heartbeat()
    assert node.expect(ReceiptIssued) == lost[0]
    world.advance(ms=world.market.policy.heartbeat_ms)
    await node.heartbeat()
    assert node.read() == []


async def test_a_stop_is_repeated_at_hello(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    await node.disconnect()
    await client.cancel(job.job_id)
    await node.connect()

    assert node.expect(Stop).reason is EndReason.CANCELLED


async def test_a_draining_node_gets_nothing_new(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await node.heartbeat(draining=True)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 0
    view = await client.job(job.job_id)
    assert view.waiting_for == "none of the 1 fitting node(s) is connected and accepting"

    await node.heartbeat(draining=False)
    assert await match_pending(world.market) == 1
    await node.accept()


async def test_a_disconnected_node_gets_nothing_new_and_a_stale_disconnect_is_ignored(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec())
    await node.disconnect()
    assert await match_pending(world.market) == 0

    await node.connect()
    links = world.links
    async with world.market.transaction() as unit:
        assert node.id in links.connected()
        from torg_marketplace.flow.nodes import on_disconnect

        await on_disconnect(unit, node.id)  # of the connection before
    assert await match_pending(world.market) == 1
    await node.accept()


async def test_a_held_lease_with_another_fence_is_stale(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    node.lease.grant = node.lease.grant.model_copy(update={"fence": 9})
    (directive,) = (await node.connect()).leases
    node.read()

    assert directive.directive == "abandon"
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].reason) == (
        JobState.QUEUED,
        LeaseState.REVOKED,
        EndReason.STALE,
    )


async def test_an_unheld_lease_in_a_heartbeat_is_no_reason_to_panic(world: World) -> None:
    node: Node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    node.expect(Granted)
    await node.ok(Accepted())
    held = dict(node.held)
    node.held.clear()  # the heartbeat was on its way before
    await node.heartbeat()
    node.held = held

    assert node.read() == []
    assert (await client.job(job.job_id)).state is JobState.LEASED
