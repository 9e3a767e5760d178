"""What is banned is refused with a reason and a way out; quotas of time say when there is room again; reports reach the operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.bans import abuse_reports, ban, bans, close_report, lift, report_abuse
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import resume_node
from torg_marketplace.flow.quotas import account_view
from torg_marketplace.flow.rows import node_row
from torg_marketplace.rules.bans import KINDS, BanKind
from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.cases import AbuseRequest
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited
from torg_protocol.messages import Granted, Stop
from torg_protocol.states import NodeState

MINER = "evil/miner"


@pytest.mark.parametrize(
    "image", [MINER, f"{MINER}:latest", f"{MINER}@sha256:{'1' * 64}", f"{MINER}:v1@sha256:{'1' * 64}"]
)
async def test_a_banned_image_is_refused_by_whatever_name(world: World, image: str) -> None:
    await join(world, isolation=("sandbox", "container"))
    client = await make_client(world)
    async with world.market.transaction() as unit:
        await ban(unit, "image", MINER, because="it mines")
        again = await ban(unit, "image", MINER, because="it scans")  # safe to repeat
        assert again["because"] == "it mines"
        for word in ("nothing changed", "it mines", "UTC by the operator", "unban image"):
            assert word in again["note"]
    with pytest.raises(Forbidden) as caught:
        await client.quote(spec(image=image))
    assert (caught.value.code, caught.value.field) == ("image_banned", "image")
    assert "it mines" in caught.value.message
    await client.quote(spec(image=f"{MINER}-not:latest"))


async def test_a_digest_can_be_banned_too(world: World) -> None:
    await join(world)
    client = await make_client(world)
    async with world.market.transaction() as unit:
        await ban(unit, "image", f"sha256:{'2' * 64}", because="x")
    with pytest.raises(Forbidden):
        await client.quote(spec(image=f"a/b@sha256:{'2' * 64}"))


async def test_a_banned_wallet_submits_nothing_until_it_is_lifted(world: World) -> None:
    await join(world)
    client, other = await make_client(world), await make_client(world)
    job = spec()
    price = await client.quote(job)
    async with world.market.transaction() as unit:
        await ban(unit, "wallet", client.account, because="chargebacks")
    with pytest.raises(Forbidden) as caught:
        await client.submit(job, quote=price)
    assert caught.value.code == "wallet_banned"
    assert "torg vault close" in (caught.value.hint or "")
    await other.submit(job)
    async with world.market.transaction() as unit:
        assert (await account_view(unit, client.account)).banned == "chargebacks"
        await lift(unit, "wallet", client.account, because="it was paid")
        assert await bans(unit) == []
    await client.submit(job)


async def test_a_quote_may_not_know_the_newest_ban_for_a_moment_and_a_submit_does(world: World) -> None:
    await join(world)
    client, job = await make_client(world), spec(image="a/b")
    quoted = await client.quote(job)
    async with world.market.transaction() as unit:
        await ban(unit, "wallet", client.account, because="chargebacks")
    world.advance(ms=world.market.policy.book_check_ms - 1)
    await client.quote(job)
    with pytest.raises(Forbidden):
        await client.submit(job, quote=quoted)
    world.advance(ms=1)
    with pytest.raises(Forbidden) as caught:
        await client.quote(job)
    assert caught.value.code == "wallet_banned"


async def test_a_banned_node_ends_what_it_runs_and_no_resume_brings_it_back(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    async with world.market.transaction() as unit:
        await ban(unit, "node", node.id, because="it reads its clients' files")
    node.expect(Stop)
    async with world.market.transaction() as unit:
        with pytest.raises(Conflict) as caught:
            await resume_node(unit, node.id, because="a mistake")
        assert caught.value.code == "node_banned"
        await lift(unit, "node", node.id, because="it was another one")
        assert (await node_row(unit, node.id)).state == NodeState.ACTIVE


async def test_what_cannot_be_banned_or_lifted_says_why(world: World) -> None:
    async with world.market.transaction() as unit:
        for kind in KINDS:
            with pytest.raises(Invalid) as wordless:
                await ban(unit, kind, "x", because=" ")
            assert wordless.value.code == "because_missing"
            with pytest.raises(NotFound) as unknown:
                await lift(unit, kind, "x", because="y")
            assert unknown.value.code == "ban_unknown"
        with pytest.raises(NotFound):
            await ban(unit, "node", "nobody", because="y")
    nothing: list[tuple[BanKind, str]] = [
        ("image", ""),
        ("image", "evil miner"),
        ("image", "evil/miner:"),
        ("wallet", "nonsense"),
    ]
    for kind, subject in nothing:
        async with world.market.transaction() as unit:
            with pytest.raises(Invalid) as refused:
                await ban(unit, kind, subject, because="y")
        assert refused.value.code == "subject_invalid"


async def test_submissions_of_a_day_are_bounded_and_it_says_until_when(tmp_path: Path) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(max_submissions_per_day=2)) as world:
        node, client, other = await join(world, slots=4), await make_client(world), await make_client(world)
        await client.submit(spec())
        world.advance(seconds=3600)
        await node.heartbeat()
        await client.submit(spec(), key="k")
        await client.submit(spec(), key="k")  # the same one again counts once
        with pytest.raises(RateLimited) as caught:
            await client.submit(spec())
        assert caught.value.code == "submissions_per_day_reached"
        assert caught.value.data["retry_after_s"] == 23 * 3600
        await other.submit(spec())
        world.advance(seconds=23 * 3600)
        await node.heartbeat()
        await client.submit(spec())
        async with world.market.reading() as unit:
            view = await account_view(unit, client.account)
        used = {quota.name: (quota.used, quota.limit) for quota in view.quotas}
        assert used["submissions_per_day"] == (2, 2)


async def test_spending_of_an_hour_is_bounded(tmp_path: Path) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(max_spend_per_hour=2 * TUSD)) as world:
        node, client = await join(world, slots=4, price=TUSD), await make_client(world)
        hour = spec(limits={"max_duration": "1h"})
        await client.submit(hour)
        await client.submit(hour)
        with pytest.raises(RateLimited) as caught:
            await client.submit(hour)
        assert (caught.value.code, caught.value.data["retry_after_s"]) == ("spend_per_hour_reached", 3600)
        assert (
            "this may cost 1 tokens, and what you asked for within an hour 2 tokens, of 2 tokens"
            in caught.value.message
        )
        world.advance(seconds=3601)
        await node.heartbeat()
        await client.submit(hour)
        node.read()


async def test_a_report_reaches_the_operator_once(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    node.expect(Granted)
    async with world.market.transaction() as unit:
        request = AbuseRequest(subject=job.job_id, reason="it scans my network")
        first = await report_abuse(unit, client.account, request)
        assert await report_abuse(unit, client.account, request) == first
        with pytest.raises(NotFound) as unknown:
            await report_abuse(unit, client.account, AbuseRequest(subject="job_none", reason="x"))
        assert unknown.value.code == "abuse_subject_unknown"
        for number in range(19):
            await report_abuse(unit, client.account, AbuseRequest(subject=node.id, reason=f"reason {number}"))
        with pytest.raises(RateLimited) as many:
            await report_abuse(unit, client.account, AbuseRequest(subject=node.id, reason="one more"))
        assert many.value.code == "too_many_reports"
        await close_report(unit, first.report_id, note="the job was stopped")
        with pytest.raises(Conflict) as closed:
            await close_report(unit, first.report_id, note="again")
        assert closed.value.code == "report_closed"
        listed = await abuse_reports(unit)
    assert len(listed) == 20
    assert (listed[0]["state"], listed[-1]["note"]) == ("open", "the job was stopped")
