"""Submit: once per key, refused early when it can never work, queued when it only has to wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.views import jobs_page
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage.money_models import VaultRow
from torg_protocol.errors import Conflict, Infeasible, Invalid, NotFound
from torg_protocol.ids import QuoteId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.messages import Granted
from torg_protocol.states import JobState


async def test_the_same_key_and_body_is_the_same_job(world: World) -> None:
    await join(world)
    client = await make_client(world)
    first = await client.submit(spec(), key="one")
    world.links.disconnect(next(iter(world.links.connected())))
    again = await client.submit(spec(), key="one")

    assert again.job_id == first.job_id
    async with world.market.reading() as unit:
        assert len((await jobs_page(unit, client.account)).jobs) == 1


async def test_submissions_at_once_are_as_one_after_the_other(tmp_path: Path, database_url: str) -> None:
    """They may share a transaction: a key is used once in it, limits count what others in it add, and who is refused is alone with that."""
    policy = MarketPolicy(max_open_jobs_per_account=3)
    async with open_world(tmp_path, policy=policy, database_url=database_url) as world:
        await join(world)
        client, other = await make_client(world), await make_client(world)
        asked = [("", "one"), ("", "one"), ("", "one"), ("two", None), ("three", None), ("four", None), ("five", None)]
        answers = await asyncio.gather(
            *(client.submit(spec(name=name or "one"), key=key) for name, key in asked),
            other.submit(spec()),
            return_exceptions=True,
        )

    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    views = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert [answer.code for answer in refused if isinstance(answer, Conflict)] == ["too_many_jobs"] * 2
    assert len(refused) == 2
    assert len({view.job_id for view in views[:3]}) == 1
    assert len({view.job_id for view in views}) == 4
    assert views[-1].client == other.account


async def test_at_once_no_more_is_admitted_than_the_cap_covers(world: World) -> None:
    await join(world, price=TUSD)
    client = await make_client(world)
    asked = spec(limits={"max_duration": "1h"})
    cap = client.signed_cap(load_job_spec(asked), 2 * TUSD)  # of three jobs of one TUSD each, two
    answers = await asyncio.gather(*(client.submit(asked, cap=cap) for _ in range(3)), return_exceptions=True)

    assert [answer.code for answer in answers if isinstance(answer, Conflict)] == ["cap_stale"]
    assert len([answer for answer in answers if not isinstance(answer, BaseException)]) == 2
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(VaultRow, client.vault)).open_maximum == 2 * TUSD


async def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    await join(world)
    client = await make_client(world)
    first = await client.submit(spec(), key="one")
    with pytest.raises(Conflict) as caught:
        await client.submit(spec(name="other"), key="one")

    assert (caught.value.code, caught.value.data["job_id"]) == ("idempotency_key_reused", first.job_id)


async def test_keys_of_two_accounts_are_two_keys(world: World) -> None:
    await join(world, slots=2)
    one, two = await make_client(world), await make_client(world)
    first, second = await one.submit(spec(), key="same"), await two.submit(spec(), key="same")

    assert first.job_id != second.job_id


@pytest.mark.parametrize(
    ("resources", "constraint", "best"),
    [
        ({"gpus": 8}, "gpus", "1"),
        ({"gpus": 1, "min_vram": "80GiB"}, "min_vram", "24.0 GiB"),
        ({"gpus": 1, "gpu_class": "h100"}, "gpu_class", "rtx-4090"),
        ({"gpus": 1, "min_compute_capability": "9.0"}, "min_compute_capability", "8.9"),
        ({"memory": "1TiB"}, "memory", "16.0 GiB"),
        ({"disk": "1TiB"}, "disk", "100.0 GiB"),
        ({"cpus": 64}, "cpus", "8"),
    ],
)
async def test_what_nothing_can_ever_run_is_refused_with_what_would_fit(
    world: World, resources: dict[str, object], constraint: str, best: str
) -> None:
    await join(world, gpus=1)
    client = await make_client(world)
    quote = await client.quote(spec(resources=resources))
    assert not quote.feasible
    assert (quote.constraints[0].constraint, quote.constraints[0].best_available) == (constraint, best)
    assert quote.constraints[0].nodes_removed == 1

    with pytest.raises(Infeasible) as caught:
        await client.submit(spec(resources=resources))
    assert (caught.value.code, caught.value.field) == ("infeasible", constraint)
    assert caught.value.data["constraints"] == [item.wire() for item in quote.constraints]


async def test_a_price_cap_below_every_offer_says_what_the_cheapest_is(world: World) -> None:
    await join(world, price=TUSD * 12 // 10)
    client = await make_client(world)
    cheap = spec(limits={"max_price_per_hour": "0.10"})
    quote = await client.quote(cheap)
    assert (quote.feasible, quote.hint) == (False, "cheapest is 1.2/h, your cap is 0.1")

    with pytest.raises(Infeasible) as caught:
        await client.submit(cheap)
    assert caught.value.hint == "cheapest is 1.2/h, your cap is 0.1"


async def test_isolation_is_an_order(world: World) -> None:
    await join(world, isolation=("container",))
    client = await make_client(world)

    assert (await client.quote(spec(isolation="sandbox"))).feasible
    assert (await client.quote(spec(isolation="container"))).feasible
    refused = await client.quote(spec(isolation="gvisor"))
    assert (refused.feasible, refused.constraints[0].constraint) == (False, "isolation")


async def test_a_market_without_nodes_says_so(world: World) -> None:
    client = await make_client(world)
    quote = await client.quote(spec())
    assert (quote.feasible, quote.nodes_considered, quote.max_amount) == (False, 0, None)

    with pytest.raises(Infeasible) as caught:
        await client.submit(spec())
    assert caught.value.message == "no node is registered here"


async def test_what_only_has_to_wait_is_queued(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await node.disconnect()
    quote = await client.quote(spec())
    assert (quote.feasible, quote.nodes_fitting) == (False, 1)
    assert quote.hint == "wait: a fitting node exists, but not now"

    job = await client.submit(spec())
    assert job.state is JobState.QUEUED
    await node.connect()
    assert await match_pending(world.market) == 1
    await node.accept()


async def test_a_busy_market_says_wait(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    node.expect(Granted)
    quote = await client.quote(spec())

    assert (quote.feasible, quote.waiting) == (True, True)


async def test_the_maximum_is_price_times_gpus_times_duration_or_max_cost(world: World) -> None:
    await join(world, price=2 * TUSD, gpus=4)
    client = await make_client(world)
    four = spec(resources={"gpus": 4}, limits={"max_duration": "30m"})
    assert (await client.quote(four)).max_amount == 4 * TUSD
    capped = spec(resources={"gpus": 4}, limits={"max_duration": "30m", "max_cost": "1.5"})
    assert (await client.quote(capped)).max_amount == TUSD * 3 // 2


async def test_one_absurd_offer_does_not_raise_what_is_held(world: World) -> None:
    for price in (1, 2, 3, 1_000):
        await join(world, price=price * TUSD)
    client = await make_client(world)
    quote = await client.quote(spec())

    assert (quote.cheapest_price_per_gpu_hour, quote.dearest_price_per_gpu_hour) == (TUSD, 3 * TUSD)
    assert quote.max_amount == 3 * TUSD


async def test_a_quote_keeps_its_ceiling_until_it_expires(world: World) -> None:
    node = await join(world, price=TUSD)
    client = await make_client(world)
    quote = await client.quote(spec())
    node.offer = node.offer.model_copy(update={"sequence": 2, "price_per_gpu_hour": 2 * TUSD})
    await node.connect()

    job = await client.submit(spec(), quote=quote)
    assert job.max_amount == TUSD
    assert await match_pending(world.market) == 0  # it would rather wait than pay more than was quoted
    waiting = (await client.job(job.job_id)).waiting_for
    assert waiting == "no node satisfies max_price_per_hour: asked 1; best available: 2"

    world.advance(seconds=60)
    with pytest.raises(Conflict) as caught:
        await client.submit(spec(), quote=quote)
    assert caught.value.code == "quote_expired"


async def test_a_quote_is_for_its_spec_and_its_owner(world: World) -> None:
    await join(world)
    client, other = await make_client(world), await make_client(world)
    quote = await client.quote(spec())
    with pytest.raises(Invalid) as caught:
        await client.submit(spec(name="other"), quote=quote)
    assert caught.value.code == "quote_other_spec"
    with pytest.raises(NotFound) as unknown:
        await other.submit(spec(), quote=quote)
    assert unknown.value.code == "quote_unknown"
    with pytest.raises(NotFound):
        await client.submit(spec(), quote=quote.model_copy(update={"quote_id": QuoteId("quote_nothing")}))


async def test_a_workspace_must_be_stored(world: World) -> None:
    await join(world)
    client = await make_client(world)
    missing = spec(workspace={"digest": "sha256:" + "0" * 64, "size_bytes": 3})
    with pytest.raises(Invalid) as caught:
        await client.submit(missing)
    assert (caught.value.code, caught.value.field) == ("blob_missing", "workspace.digest")

    blob = world.blobs.put(b"abc")
    with pytest.raises(Invalid) as caught:
        await client.submit(spec(workspace={"digest": blob.digest, "size_bytes": 4}))
    assert caught.value.code == "blob_size_mismatch"


async def test_an_unfunded_vault_is_refused_and_nothing_is_left_behind(world: World) -> None:
    await join(world, price=5 * TUSD)
    client = await make_client(world, deposit=TUSD)
    with pytest.raises(Conflict) as caught:
        await client.submit(spec(), key="one")
    assert (caught.value.code, caught.value.data["missing"]) == ("vault_underfunded", 4 * TUSD)
    async with world.market.reading() as unit:
        assert (await jobs_page(unit, client.account)).jobs == ()


async def test_a_cap_that_is_too_low_is_refused_with_what_is_needed(world: World) -> None:
    await join(world, price=5 * TUSD)
    client = await make_client(world)
    with pytest.raises(Conflict) as caught:
        await client.submit(spec(), cap=client.signed_cap(load_job_spec(spec()), TUSD))
    assert caught.value.code == "cap_stale"
    assert caught.value.data["statement"]["needed_cap"] == 5 * TUSD


async def test_pages_are_newest_first_and_only_ones_own(world: World) -> None:
    await join(world)
    client, other = await make_client(world), await make_client(world)
    await other.submit(spec())
    jobs = []
    for number in range(5):
        world.advance(ms=1)
        jobs.append((await client.submit(spec(name=f"job{number}"))).name)
    async with world.market.reading() as unit:
        first = await jobs_page(unit, client.account, limit=3)
        second = await jobs_page(unit, client.account, limit=3, cursor=first.next_cursor)
        with pytest.raises(Invalid) as caught:
            await jobs_page(unit, client.account, limit=0)

    assert [job.name for job in (*first.jobs, *second.jobs)] == jobs[::-1]
    assert second.next_cursor is None
    assert caught.value.code == "limit_invalid"


async def test_an_image_archive_must_be_the_clients_own(world: World) -> None:
    await join(world)
    client, thief = await make_client(world), await make_client(world)
    blob = world.blobs.put(b"an image of mine")
    await world.blobs.sent_by(world.market, client.account, [blob])
    theirs = spec(image=f"blob:{blob.digest}")
    await client.submit(theirs)

    with pytest.raises(Invalid) as refused:
        await thief.submit(theirs)
    assert (refused.value.code, refused.value.field) == ("blob_missing", "image")
