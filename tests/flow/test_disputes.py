"""A client objects, a person decides, both sides see it, and the decision is a posting."""

from __future__ import annotations

import pytest

from tests.support.actors import TUSD, Client, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.disputes import all_disputes, decide_dispute, disputes_of, open_dispute
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.refunds import refund_lease, refunds_of
from torg_marketplace.storage import ledger
from torg_protocol.cases import DisputeView
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError
from torg_protocol.ids import JobId
from torg_protocol.messages import RefundIssued
from torg_protocol.refunds import RefundCause

DAY_S = 86_400


async def finished(world: World) -> tuple[Node, Client, JobId]:
    """A job of one hour for one token."""
    node, client = await join(world, price=TUSD), await make_client(world)
    job = await client.submit(spec(limits={"max_duration": "1h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=3600)
    await node.finish()
    node.read()
    return node, client, job.job_id


async def objects(world: World, client: Client, job_id: JobId, reason: str = "the loss is NaN") -> DisputeView:
    async with world.market.transaction() as unit:
        return await open_dispute(unit, client.account, job_id, reason)


async def decide(world: World, dispute_id: str, share: int, note: str = "the GPU was faulty") -> DisputeView:
    async with world.market.transaction() as unit:
        return await decide_dispute(unit, dispute_id, share_percent=share, note=note)


async def test_a_decision_gives_back_a_share_and_both_sides_see_it(world: World) -> None:
    node, client, job_id = await finished(world)
    opened = await objects(world, client, job_id)
    assert await objects(world, client, job_id) == opened, "safe to repeat"
    decided = await decide(world, opened.dispute_id, 40)
    assert (decided.state, decided.refunded, decided.note) == ("decided", 400_000, "the GPU was faulty")
    async with world.market.reading() as unit:
        for party in (client.account, node.id):
            assert (await disputes_of(unit, party)).disputes == (decided,)
        assert (await disputes_of(unit, "somebody")).disputes == ()
        (refund,) = (await refunds_of(unit, client.account)).refunds
        assert await ledger.problems(unit.session) == []
    assert (refund.signed.refund.cause, refund.signed.refund.amount) == (RefundCause.DISPUTE, 400_000)
    assert node.expect(RefundIssued).refund == refund.signed


async def test_what_earlier_refunds_left_is_the_most(world: World) -> None:
    node, client, job_id = await finished(world)
    lease_id = (await client.job(job_id)).leases[0].lease_id
    async with world.market.transaction() as unit:
        await refund_lease(unit, lease_id, 300_000, RefundCause.SLOW_LEASE)
    opened = await objects(world, client, job_id)
    assert (await decide(world, opened.dispute_id, 100)).refunded == 700_000
    node.read()


async def test_each_member_of_a_gang_gives_back_its_part(world: World) -> None:
    nodes, client = [await join(world, price=TUSD) for _ in range(2)], await make_client(world)
    job = await client.submit(spec(gang={"size": 2}, limits={"max_duration": "1h"}))
    await match_pending(world.market)
    for node in nodes:
        await node.accept_and_start()
    world.advance(seconds=1800)
    for node in nodes:
        await node.finish()
    for node in nodes:
        node.read()
    opened = await objects(world, client, job.job_id)
    assert (await decide(world, opened.dispute_id, 50)).refunded == 500_000
    assert sum(node.expect(RefundIssued).refund.refund.amount for node in nodes) == 500_000


async def test_a_rejected_one_moves_nothing(world: World) -> None:
    _, client, job_id = await finished(world)
    opened = await objects(world, client, job_id)
    assert (await decide(world, opened.dispute_id, 0, "works as described")).refunded == 0
    async with world.market.reading() as unit:
        assert (await refunds_of(unit, client.account)).refunds == ()
        assert [view.state for view in await all_disputes(unit)] == ["decided"]


async def test_what_cannot_be_disputed_says_why(world: World) -> None:
    node, client, job_id = await finished(world)
    other = await make_client(world)

    async def refused(expected: type[TorgError], by: Client, job: JobId, reason: str = "x") -> str:
        with pytest.raises(expected) as caught:
            await objects(world, by, job, reason)
        return caught.value.code

    assert await refused(NotFound, other, job_id) == "job_unknown"
    running = await client.submit(spec())
    assert await refused(Conflict, client, running.job_id) == "dispute_too_early"
    await client.cancel(running.job_id)
    assert await refused(Conflict, client, running.job_id) == "nothing_to_dispute"
    opened = await objects(world, client, job_id)
    assert await refused(Conflict, client, job_id, "another reason") == "dispute_exists"
    with pytest.raises(Invalid) as wordless:
        await decide(world, opened.dispute_id, 40, " ")
    assert wordless.value.code == "note_missing"
    with pytest.raises(NotFound):
        await decide(world, "dispute_none", 40)
    await decide(world, opened.dispute_id, 40)
    node.read()
    with pytest.raises(Conflict) as again:
        await decide(world, opened.dispute_id, 50)
    assert again.value.code == "dispute_decided"


async def test_after_the_window_it_is_too_late(world: World) -> None:
    _, client, job_id = await finished(world)
    world.advance(seconds=14 * DAY_S + 1)
    with pytest.raises(Conflict) as caught:
        await objects(world, client, job_id)
    assert caught.value.code == "dispute_too_late"
