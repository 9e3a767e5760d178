"""Reference prices: from what is free and who waits, once a minute, whoever asks."""

from __future__ import annotations

import asyncio

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.prices import prices, publish_prices
from torg_protocol.api import QueuePlace, ReferencePrice
from torg_protocol.messages import Granted


async def published(world: World, since_ms: int | None = None) -> tuple[ReferencePrice, ...]:
    async with world.market.reading() as unit:
        return await prices(unit, since_ms=since_ms)


async def test_each_minute_has_one_price_per_class(world: World) -> None:
    await join(world, price=2 * TUSD, gpus=2)
    await join(world, price=TUSD, slots=3)
    client = await make_client(world)
    await client.submit(spec(resources={"gpus": 1}, limits={"max_price_per_hour": "4"}))
    assert sorted(await asyncio.gather(*(publish_prices(world.market) for _ in range(3)))) == [0, 0, 2]

    cpu, gpu = sorted(await published(world), key=lambda item: item.gpu_class)
    assert (cpu.gpu_class, cpu.price_per_gpu_hour, cpu.best_ask, cpu.gpus_offered, cpu.gpus_wanted) == (
        "cpu",
        None,
        TUSD,
        3,
        0,
    )
    # One GPU changes hands; the second stays: the price is what the next seller asks.
    assert (gpu.gpu_class, gpu.price_per_gpu_hour, gpu.gpus, gpu.best_bid) == ("rtx-4090", 2 * TUSD, 1, 4 * TUSD)


async def test_minutes_are_kept_and_old_ones_go(world: World) -> None:
    node = await join(world)
    first_ms = world.clock.now_ms() // 60_000 * 60_000
    for _ in range(3):
        assert await publish_prices(world.market) == 1
        world.advance(seconds=60)
    minutes = [item.at_ms for item in await published(world, since_ms=first_ms)]
    assert minutes == [first_ms + 120_000, first_ms + 60_000, first_ms]
    assert [item.at_ms for item in await published(world)] == minutes[:1]

    world.advance(seconds=7 * 86_400)
    await node.heartbeat()
    assert await publish_prices(world.market) == 1
    assert len(await published(world, since_ms=0)) == 1


async def test_a_quote_tells_the_reference_price_of_the_classes_that_fit(world: World) -> None:
    await join(world, price=2 * TUSD, gpus=1)
    await join(world, price=TUSD, slots=3)
    client = await make_client(world)
    before = await client.quote(spec(resources={"gpus": 1}))
    await client.submit(spec(resources={"gpus": 1}, limits={"max_price_per_hour": "4"}))
    await publish_prices(world.market)

    quoted = await client.quote(spec(resources={"gpus": 1}))

    assert before.reference_prices == ()
    assert [(item.gpu_class, item.price_per_gpu_hour) for item in quoted.reference_prices] == [
        ("rtx-4090", 3 * TUSD)
    ]  # between what is bid and what is asked


async def test_a_job_that_waits_says_its_place_and_a_list_does_not(world: World) -> None:
    node = await join(world, price=TUSD, slots=1)
    client, other = await make_client(world), await make_client(world)
    running = await client.submit(spec())
    await match_pending(world.market)
    rich = await other.submit(spec(limits={"max_price_per_hour": "9"}))
    mine = [await client.submit(spec())]
    world.advance(ms=1)  # who came first says the clock
    mine.append(await client.submit(spec()))

    place = (await client.job(mine[1].job_id)).queue

    assert place is not None
    assert (place.place, place.waiting, place.bid_more, place.own, place.own_running) == (3, 3, 1, 1, 1)
    assert (await other.job(rich.job_id)).queue == QueuePlace(
        place=1, waiting=3, bid_more=0, waited_longer=0, by_turn=0, own=0, own_running=0
    )
    assert (await client.job(running.job_id)).queue is None
    node.expect(Granted)
