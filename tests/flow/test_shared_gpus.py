"""Parts of a GPU: for leases of one client alone, as the offer allows, for their part of the price."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from tests.support.actors import TUSD, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.storage.models import AllocationRow
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import load_job_spec
from torg_protocol.messages import Granted
from torg_protocol.states import JobState


def part(fraction: float, **changes: Any) -> dict[str, Any]:
    return spec(resources={"gpus": 1, "gpu_fraction": str(fraction)}, **changes)


async def units(world: World) -> list[str]:
    async with world.market.reading() as unit:
        return list(await unit.session.scalars(select(AllocationRow.unit).order_by(AllocationRow.unit)))


async def test_two_jobs_of_one_client_share_a_gpu_and_a_strangers_waits(world: World) -> None:
    node = await join(world, gpus=1, gpu_slices=2, price=TUSD + 1)
    anna, bert = await make_client(world), await make_client(world)
    first, second = [await anna.submit(part(0.5, name=name)) for name in ("first", "second")]

    assert await match_pending(world.market) == 2
    stranger = await bert.submit(part(0.5))
    assert await match_pending(world.market) == 0
    assert await units(world) == ["gpu:0/0", "gpu:0/1"]
    grants = [message.signed.grant for message in node.read() if isinstance(message, Granted)]
    assert {grant.client for grant in grants} == {anna.account}
    assert {(grant.price_per_gpu_hour, grant.billable_gpus) for grant in grants} == {(TUSD // 2, 1)}
    assert [grant.max_amount for grant in grants] == [first.max_amount, second.max_amount] == [TUSD // 2] * 2
    waiting = await bert.job(stranger.job_id)
    assert (waiting.state, waiting.waiting_for) == (JobState.QUEUED, "all 1 fitting node(s) are busy")

    for job in (first, second):
        await anna.cancel(job.job_id)
    await let_pass(world, seconds=400)  # their node says nothing: they are given up
    assert await units(world) == []
    node.read()


async def test_a_share_is_billed_its_part(world: World) -> None:
    node = await join(world, gpus=1, gpu_slices=4, price=TUSD)
    client = await make_client(world)
    job = await client.submit(part(0.25, limits={"max_duration": "1h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=1800)
    await node.heartbeat()
    await node.finish()

    (receipt,) = await client.receipts(job.job_id)
    node.read()
    assert receipt.receipt.amount == TUSD // 8
    assert await units(world) == []


async def test_whole_jobs_and_shares_never_meet(world: World) -> None:
    node = await join(world, gpus=2, gpu_slices=2)
    client = await make_client(world)
    for number, wanted in enumerate([part(0.5), spec(resources={"gpus": 1}), spec(resources={"gpus": 1}), part(0.5)]):
        await client.submit(wanted | {"name": f"job{number}"})
        await match_pending(world.market)

    assert len(node.read()) == 3
    assert await units(world) == ["gpu:0/0", "gpu:0/1", "gpu:1"]


async def test_the_fullest_gpu_that_still_fits_is_filled(world: World) -> None:
    node = await join(world, gpus=2, gpu_slices=3)
    anna, bert = await make_client(world), await make_client(world)
    for who, fraction in ((anna, 0.6), (bert, 0.4), (anna, 0.6), (bert, 0.5), (anna, 0.4)):
        await who.submit(part(fraction))
        await match_pending(world.market)

    assert len(node.read()) == 4
    assert await units(world) == ["gpu:0/0", "gpu:0/1", "gpu:1/0", "gpu:1/1"]


async def test_racing_matchers_never_use_more_than_one_gpu_has(world: World) -> None:
    node = await join(world, gpus=1, gpu_slices=3)
    client = await make_client(world)
    for number in range(6):
        await client.submit(part(0.333, name=f"job{number}"))
    granted = await asyncio.gather(*(match_pending(world.market) for _ in range(5)))

    assert sum(granted) == 3
    assert len(node.read()) == 3
    assert await units(world) == ["gpu:0/0", "gpu:0/1", "gpu:0/2"]


@pytest.mark.parametrize(
    ("slices", "best"), [(1, "whole GPUs only"), (2, "0.5 of a GPU at least"), (3, "0.333 of a GPU at least")]
)
async def test_a_quote_says_who_shares_and_how_finely(world: World, slices: int, best: str) -> None:
    await join(world, gpus=1, gpu_slices=slices)
    client = await make_client(world)
    quote = await client.quote(part(0.25))

    assert not quote.feasible
    (failure,) = quote.constraints
    assert (failure.constraint, failure.asked, failure.best_available) == ("gpu_fraction", "0.25", best)


async def test_a_quote_of_a_share_is_its_part_of_the_price(world: World) -> None:
    await join(world, gpus=1, gpu_slices=2, price=TUSD)
    quote = await (await make_client(world)).quote(part(0.5, limits={"max_duration": "1h"}))

    assert (quote.feasible, quote.max_amount, quote.cheapest_price_per_gpu_hour) == (True, TUSD // 2, TUSD)


async def test_when_a_shared_gpu_will_be_free_is_told_by_the_last_of_its_leases(world: World) -> None:
    node = await join(world, gpus=1, gpu_slices=2)
    client = await make_client(world)
    for duration in ("1h", "3h"):
        await client.submit(part(0.5, limits={"max_duration": duration}))
    await match_pending(world.market)
    quote = await client.quote(spec(resources={"gpus": 1}))

    assert len(node.read()) == 2
    assert quote.start is not None
    assert quote.start.room_latest_ms == 3 * 3_600_000


@pytest.mark.parametrize("fraction", [0, 1.5, -0.5, "half", 0.33333, True])
def test_what_is_not_a_part_of_a_gpu(fraction: object) -> None:
    with pytest.raises(Invalid) as caught:
        load_job_spec(spec(resources={"gpus": 1, "gpu_fraction": fraction}))
    assert (caught.value.code, caught.value.field) == ("spec_invalid", "resources.gpu_fraction")
    assert "write 0.5" in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [{"resources": {"gpu_fraction": 0.5}}, {"resources": {"gpus": 2, "gpu_fraction": 0.5}}]
    + [{"resources": {"gpus": 1, "gpu_fraction": 0.5}} | more for more in ({"gang": {"size": 2}}, {"spot": True})],
    ids=["none", "two", "gang", "spot"],
)
def test_a_part_is_of_one_gpu_on_one_node_and_nobody_preempts_it(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=r"resources\.gpu_fraction: 0\.5 is a part of one GPU") as caught:
        load_job_spec(spec(**changes))
    assert caught.value.code == "spec_invalid"


def test_a_whole_gpu_is_written_as_it_always_was() -> None:
    whole, plain = (load_job_spec(spec(resources={"gpus": 1} | more)) for more in ({"gpu_fraction": 1}, {}))
    half = load_job_spec(part(0.5))

    assert whole.digest == plain.digest
    assert "gpu_fraction" not in plain.wire()["resources"]
    assert load_job_spec(half.wire()).digest == half.digest != plain.digest
