"""Reference prices: from what is free and who waits, once a minute, whoever asks."""

from __future__ import annotations

import asyncio

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.prices import prices, publish_prices
from torg_protocol.api import ReferencePrice


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
