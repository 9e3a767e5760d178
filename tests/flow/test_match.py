"""What the matcher does with a queue: order, shares, and a live book that never lags behind what happened here."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from tests.support.actors import TUSD, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.match import match_pending
from torg_marketplace.storage.models import NodeRow
from torg_protocol.messages import Declined, Granted
from torg_protocol.states import EndReason, JobState, NodeState


async def test_the_higher_bid_is_served_first_and_pays_the_ask(world: World) -> None:
    node = await join(world, price=TUSD)
    low, high = await make_client(world), await make_client(world)
    await low.submit(spec(limits={"max_price_per_hour": "1"}))
    world.advance(seconds=60)
    urgent = await high.submit(spec(limits={"max_price_per_hour": "2"}))
    assert urgent.max_amount == 2 * TUSD  # a bid is what is held: nobody bids what he could not be charged

    assert await match_pending(world.market) == 1
    document = node.expect(Granted).signed.grant
    assert (document.job_id, document.price_per_gpu_hour) == (urgent.job_id, TUSD)


async def test_accounts_with_equal_bids_take_turns(world: World) -> None:
    node = await join(world, slots=3, memory_gib=64)
    many, few = await make_client(world), await make_client(world)
    for number in range(4):
        await many.submit(spec(name=f"flood{number}"))
        world.advance(ms=1)
    world.advance(seconds=30)
    first = await few.submit(spec(name="one0"))
    world.advance(ms=1)
    second = await few.submit(spec(name="one1"))

    assert await match_pending(world.market) == 3
    names = [message.signed.grant.spec.name for message in node.read() if isinstance(message, Granted)]
    assert names == ["flood0", "one0", "flood1"]
    assert (await few.job(first.job_id)).state is JobState.LEASED
    assert (await few.job(second.job_id)).waiting_for == "all 1 fitting node(s) are busy"


async def test_all_that_wish_the_same_are_told_what_they_wait_for(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    jobs = []
    for number in range(3):
        jobs.append(await client.submit(spec(name=f"job{number}")))
        world.advance(ms=1)
    assert await match_pending(world.market) == 1
    node.expect(Granted)

    views = [await client.job(job.job_id) for job in jobs]
    assert [view.state for view in views] == [JobState.LEASED, JobState.QUEUED, JobState.QUEUED]
    assert {view.waiting_for for view in views[1:]} == {"all 1 fitting node(s) are busy"}


async def test_the_book_learns_of_what_other_processes_changed(world: World) -> None:
    node = await join(world)
    assert len((await live_engine(world.market)).fleet) == 1
    async with world.market.sessions() as session, session.begin():  # behind this process's back
        await session.execute(update(NodeRow).values(state=NodeState.SUSPENDED))
    assert len((await live_engine(world.market)).fleet) == 1
    world.advance(ms=world.market.policy.book_check_ms)
    assert len((await live_engine(world.market)).fleet) == 0
    assert node.read() == []


async def test_a_rolled_back_change_leaves_the_book_as_the_database_is(world: World) -> None:
    await join(world)
    engine = await live_engine(world.market)
    try:
        async with world.market.transaction() as unit:
            await unit.session.execute(update(NodeRow).values(connected=False))
            raise RuntimeError("the process fails here")
    except RuntimeError:
        pass
    assert await live_engine(world.market) is engine


async def test_fingerprints_are_read_page_by_page_and_nobody_waits_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torg_marketplace.flow.live._PAGE", 2)
    nodes = [await join(world) for _ in range(5)]
    engine = await live_engine(world.market)
    assert len(engine.fleet) == 5
    gone = max(node.id for node in nodes)  # on the last page
    async with world.market.sessions() as session, session.begin():  # behind this process's back
        await session.execute(update(NodeRow).where(NodeRow.node_id == gone).values(state=NodeState.SUSPENDED))
    world.advance(ms=world.market.policy.book_check_ms)
    looking = asyncio.create_task(live_engine(world.market))
    await asyncio.sleep(0)  # it begins to read, and yields between pages
    assert world.market.book.checked_at_ms == world.clock.now_ms()
    assert gone in (await live_engine(world.market)).fleet.row_of  # comes while another one looks, and goes on
    assert not looking.done()
    assert gone not in (await looking).fleet.row_of
    assert engine.fleet.live[engine.fleet.rows()].all()


async def test_who_declined_for_a_reason_that_passes_is_asked_again(world: World) -> None:
    client, node = await make_client(world), await join(world)
    job = await client.submit(spec(limits={"queue_timeout": "1h"}))
    for pause_s in (60, 120):
        assert await match_pending(world.market) == 1
        node.expect(Granted)
        await node.ok(Declined(detail="no room", code="no_room"))
        node.read()
        await let_pass(world, seconds=pause_s - 10, nodes=(node,))
        assert await match_pending(world.market) == 0
        waits_for = (await client.job(job.job_id)).waiting_for
        assert waits_for == "all 1 fitting node(s) are busy, or declined it lately (1)"
        await let_pass(world, seconds=10, nodes=(node,))

    assert await match_pending(world.market) == 1
    await node.accept()


async def test_declines_do_not_keep_a_job_beyond_its_queue_timeout(world: World) -> None:
    client, node = await make_client(world), await join(world)
    job = await client.submit(spec(limits={"queue_timeout": "70s"}))
    for _ in range(2):
        assert await match_pending(world.market) == 1
        node.expect(Granted)
        await node.ok(Declined(detail="no room", code="no_room"))
        node.read()
        await let_pass(world, seconds=60, nodes=(node,))

    assert (await client.job(job.job_id)).state is JobState.EXPIRED


async def test_a_grant_that_nobody_answers_until_after_the_queue_timeout_ends_in_the_same_sweep(world: World) -> None:
    client, node = await make_client(world), await join(world)
    job = await client.submit(spec(limits={"queue_timeout": "5s"}))
    assert await match_pending(world.market) == 1

    await let_pass(world, seconds=10, nodes=(node,))

    node.read()
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].reason) == (JobState.EXPIRED, EndReason.DECLINED)


async def test_who_declined_for_good_is_not_asked_again(world: World) -> None:
    client, node = await make_client(world), await join(world)
    await client.submit(spec(limits={"queue_timeout": "1h"}))
    assert await match_pending(world.market) == 1
    node.expect(Granted)
    await node.ok(Declined(detail="no such jobs", code="kind_denied"))
    node.read()

    await let_pass(world, seconds=1800, nodes=(node,))

    assert await match_pending(world.market) == 0
