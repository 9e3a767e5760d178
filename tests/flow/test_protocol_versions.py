"""Nodes of the release before take part, and get no job that they could not read."""

from __future__ import annotations

import pytest

from tests.support.actors import TUSD, Node, join, make_client, make_node, spec
from tests.support.market import World
from torg_marketplace.flow.grant import NotGrantable, grant
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import inspect_anything
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.views import OfferFilter, node_view, offer_page
from torg_protocol.errors import Infeasible
from torg_protocol.ids import Digest
from torg_protocol.messages import CheckpointRef, CheckpointStored, Granted, Released
from torg_protocol.states import EndReason, JobState
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION

MUST_UPDATE = "1 node speaks protocol 1, which has no named volumes: its owner must update"
WITH_VOLUME = spec(volumes=["models:/models"])


async def join_older(world: World, *, price: int = TUSD) -> Node:
    node = make_node(world, price=price)
    node.protocol_version = OLDEST_PROTOCOL_VERSION
    await node.connect()
    return node


async def update(node: Node) -> None:
    await node.disconnect()
    node.protocol_version = PROTOCOL_VERSION
    await node.connect()


async def test_an_older_node_gets_what_it_knows_and_not_what_it_does_not(world: World) -> None:
    older, newer = await join_older(world), await join(world, price=2 * TUSD)
    client = await make_client(world)
    plain, named = await client.submit(spec()), await client.submit(WITH_VOLUME)

    assert await match_pending(world.market) == 2
    assert older.expect(Granted).signed.grant.job_id == plain.job_id
    assert newer.expect(Granted).signed.grant.job_id == named.job_id


async def test_everybody_is_told_what_a_node_speaks(world: World) -> None:
    older, newer = await join_older(world), await join(world)
    async with world.market.reading() as unit:
        page = await offer_page(unit, OfferFilter())
        views = [await node_view(unit, node.id) for node in (older, newer)]
        inspected = await inspect_anything(unit, older.id)

    spoken = {older.id: OLDEST_PROTOCOL_VERSION, newer.id: PROTOCOL_VERSION}
    assert {offer.node: offer.protocol_version for offer in page.offers} == spoken
    assert {view.node: view.protocol_version for view in views} == spoken
    assert inspected["node"]["protocol_version"] == OLDEST_PROTOCOL_VERSION


async def test_a_quote_says_who_must_update_and_a_job_is_not_taken_for_them(world: World) -> None:
    await join_older(world)
    client = await make_client(world)
    quote = await client.quote(WITH_VOLUME)

    assert (quote.feasible, quote.hint) == (False, MUST_UPDATE)
    assert [(item.constraint, item.asked, item.nodes_removed) for item in quote.constraints] == [
        ("protocol_version", "2 (named volumes)", 1)
    ]
    with pytest.raises(Infeasible) as refused:
        await client.submit(WITH_VOLUME)
    assert refused.value.hint == MUST_UPDATE


async def test_a_job_that_waits_is_told_and_starts_when_the_node_was_updated(world: World) -> None:
    older, newer = await join_older(world), await join(world, price=2 * TUSD)
    client = await make_client(world)
    busy = await client.submit(spec(excluded_nodes=[older.id]))
    world.advance(ms=1)
    job = await client.submit(WITH_VOLUME)
    assert await match_pending(world.market) == 1
    assert newer.expect(Granted).signed.grant.job_id == busy.job_id
    assert (await client.job(job.job_id)).state is JobState.QUEUED

    await update(older)
    assert await match_pending(world.market) == 1
    assert older.expect(Granted).signed.grant.job_id == job.job_id


async def test_a_node_that_went_back_to_its_older_release_is_not_granted_what_the_matcher_saw_before(
    world: World,
) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(WITH_VOLUME)
    await node.disconnect()
    node.protocol_version = OLDEST_PROTOCOL_VERSION
    await node.connect()

    with pytest.raises(NotGrantable):
        async with world.market.transaction() as unit:
            await grant(unit, await job_row(unit, job.job_id), [node.id])
    assert await match_pending(world.market) == 0
    assert node.read() == []


async def test_a_checkpoint_by_its_pieces_is_resumed_where_it_can_be_read(world: World) -> None:
    newer = await join(world)
    client = await make_client(world)
    job = await client.submit(spec(checkpoint={"enabled": True}))
    assert await match_pending(world.market) == 1
    await newer.accept_and_start()
    world.advance(seconds=60)
    blob = world.blobs.put(b"weights").model_copy(update={"digest": Digest("pieces:" + "1" * 64)})
    at_ms = world.clock.now_ms()
    checkpoint = CheckpointRef(name="step1", blob=blob, useful_ms=50_000, written_at_ms=at_ms)
    world.blobs.stored[blob.digest] = b"weights"
    await newer.ok(CheckpointStored(checkpoint=checkpoint))
    older = await join_older(world)
    await newer.ok(Released(reason=EndReason.HOST_PROTECTION))
    assert (await client.job(job.job_id)).state is JobState.QUEUED

    assert await match_pending(world.market) == 0
    assert older.read() == []
    assert (await client.job(job.job_id)).waiting_for is not None
    newer.read()
