"""What a quote says before anybody commits to anything: whether, where, when, for how much, and what to give up otherwise."""

from __future__ import annotations

from tests.support.actors import TUSD, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.matching_pulse import AWAY_AFTER_MS, note_matching
from torg_protocol.api import Quote
from torg_protocol.messages import Granted

MINUTE_MS = 60_000


async def run_one(world: World, node: Node, *, prepare_s: int, run_s: int) -> None:
    """A job of an hour at most that ends earlier."""
    client = await make_client(world)
    await client.submit(spec(limits={"max_duration": "1h"}))
    assert await match_pending(world.market) == 1
    await node.accept()
    world.advance(seconds=prepare_s)
    await node.start()
    world.advance(seconds=run_s)
    await node.heartbeat()
    await node.finish()
    node.read()


def start_of(quote: Quote) -> tuple[int | None, int | None, int | None, int]:
    assert quote.start is not None
    return quote.start.room_expected_ms, quote.start.room_latest_ms, quote.start.prepare_ms, quote.start.jobs_ahead


async def test_a_free_node_means_now_and_nothing_seen_means_unknown_preparation(world: World) -> None:
    await join(world)
    quote = await (await make_client(world)).quote(spec())

    assert start_of(quote) == (0, 0, None, 0)
    assert quote.start is not None
    assert quote.start.basis[0] == "room: 1 node(s) are free"


async def test_what_leases_took_lately_says_when_a_busy_node_is_expected(world: World) -> None:
    node = await join(world)
    await run_one(world, node, prepare_s=20, run_s=30 * 60)  # half of its hour
    client = await make_client(world)
    await client.submit(spec(limits={"max_duration": "2h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=600)
    await node.heartbeat()
    world.market.book.history = None
    quote = await client.quote(spec())

    assert quote.waiting
    assert start_of(quote) == (50 * MINUTE_MS, 110 * MINUTE_MS, 20_000, 0)


async def test_jobs_that_wait_with_the_same_bid_go_first(world: World) -> None:
    first, second = await join(world), await join(world)
    client = await make_client(world)
    for hours in (1, 2):
        await client.submit(spec(limits={"max_duration": f"{hours}h"}))
        world.advance(ms=1)
    assert await match_pending(world.market) == 2
    for node in (first, second):
        node.expect(Granted)
    assert start_of(await client.quote(spec()))[1] == 60 * MINUTE_MS
    for waiting in (1, 2):
        await client.submit(spec())
        latest = start_of(await client.quote(spec()))
        assert latest[3] == waiting
        assert latest[1] == (120 * MINUTE_MS if waiting == 1 else None)


async def test_each_constraint_says_what_giving_it_up_brings_and_costs(world: World) -> None:
    await join(world, gpus=1, vram_gib=24, price=TUSD)
    await join(world, gpus=1, vram_gib=80, price=3 * TUSD)
    client = await make_client(world)
    quote = await client.quote(spec(resources={"gpus": 1, "min_vram": "48GiB"}, limits={"max_price_per_hour": "2"}))

    assert not quote.feasible
    without = {item.constraint: (item.nodes_without_it, item.cheapest_without_it) for item in quote.constraints}
    assert without == {"min_vram": (1, TUSD), "max_price_per_hour": (1, 3 * TUSD)}


async def test_while_nobody_matches_no_start_is_promised(world: World) -> None:
    await join(world)
    client = await make_client(world)
    await note_matching(world.market)
    world.advance(ms=AWAY_AFTER_MS - 1)
    at_once = (await client.quote(spec())).start
    assert at_once is not None
    assert at_once.room_expected_ms == 0
    world.advance(ms=6_000)
    waits = (await client.quote(spec())).start
    assert waits is not None
    assert (waits.room_expected_ms, waits.room_latest_ms) == (None, None)
    assert "nothing has been matched for 20 s" in waits.basis[0]

    await note_matching(world.market)
    world.advance(ms=5_000)
    again = (await client.quote(spec())).start
    assert again is not None
    assert again.room_expected_ms == 0
