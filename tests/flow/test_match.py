"""What the matcher does with a queue: order, shares, and a live book that never lags behind what happened here."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update

from tests.support.actors import TUSD, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow import match
from torg_marketplace.flow.ending import end_queued
from torg_marketplace.flow.grant import NothingLeft
from torg_marketplace.flow.live import keep_fresh, live_engine
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.models import AllocationRow, JobRow, NodeRow
from torg_marketplace.storage.money_models import VaultRow
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


async def test_one_that_is_refused_keeps_nobody_from_what_is_granted_with_it(world: World) -> None:
    """A pass grants what it found in one transaction. Here one vault closes meanwhile, and one job is cancelled."""
    node = await join(world, slots=5, memory_gib=64)
    clients = [await make_client(world) for _ in range(4)]
    jobs = [await client.submit(spec(name=f"job{number}")) for number, client in enumerate(clients)]
    async with world.market.transaction() as unit:
        (await unit.session.get_one(VaultRow, clients[1].vault)).close_at_s = world.clock.now_ms() // 1000 + 86_400
    await clients[2].cancel(jobs[2].job_id)

    assert await match_pending(world.market) == 2
    grants = [message.signed.grant for message in node.read() if isinstance(message, Granted)]
    assert {grant.job_id for grant in grants} == {jobs[0].job_id, jobs[3].job_id}
    waiting = await clients[1].job(jobs[1].job_id)
    assert (waiting.state, waiting.waiting_for) == (JobState.QUEUED, "the vault is closing or blocked")
    async with world.market.reading() as unit:
        units = (await unit.session.scalars(select(AllocationRow.unit))).all()
        assert sorted(units) == ["slot:0", "slot:1"]


async def test_a_job_that_is_cancelled_while_it_turns_out_to_have_nothing_left_stops_no_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    read, looks = match.job_row, iter(["at the grant", "and once more"])

    async def nothing_left(*_: object) -> None:
        raise NothingLeft(EndReason.BUDGET, "earlier attempts have used it up")

    async def cancelled_between(unit: Unit, job_id: str) -> JobRow:
        row = await read(unit, job_id)
        if next(looks) == "and once more":
            await end_queued(unit, row, EndReason.CANCELLED)
        return row

    monkeypatch.setattr(match, "job_row", cancelled_between)
    monkeypatch.setattr(match, "grant", nothing_left)
    monkeypatch.setattr(match, "grant_on", nothing_left)
    assert await match_pending(world.market) == 0
    assert (await client.job(job.job_id)).state is JobState.CANCELLED


async def test_jobs_that_are_granted_together_share_a_node_as_if_one_after_the_other(world: World) -> None:
    """Each sees what those before it took: units, memory, places on a GPU that one client's jobs share."""
    node = await join(world, slots=8, gpus=1, gpu_slices=2, memory_gib=64)
    client = await make_client(world)
    for number in range(4):
        await client.submit(spec(name=f"big{number}", resources={"memory": "20GiB", "cpus": 1}))
        await client.submit(spec(name=f"half{number}", resources={"gpus": 1, "gpu_fraction": "0.5"}))

    assert await match_pending(world.market) == 5
    node.read()
    async with world.market.reading() as unit:
        units = (await unit.session.scalars(select(AllocationRow.unit))).all()
    assert sorted(units) == ["gpu:0/0", "gpu:0/1", "slot:0", "slot:1", "slot:2"]


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


async def test_whoever_asks_often_does_not_wait_for_the_look_at_the_whole_fleet(world: World) -> None:
    await join(world)
    await live_engine(world.market)
    async with world.market.sessions() as session, session.begin():  # behind this process's back
        await session.execute(update(NodeRow).values(state=NodeState.SUSPENDED))
    check_ms, looked_ms = world.market.policy.book_check_ms, world.market.book.checked_at_ms
    world.advance(ms=check_ms // 2)
    await keep_fresh(world.market)
    assert world.market.book.checked_at_ms == looked_ms
    world.advance(ms=check_ms // 4)
    await keep_fresh(world.market)
    looked_ms = world.market.book.checked_at_ms
    assert looked_ms == world.clock.now_ms()
    world.advance(ms=check_ms // 2)
    assert len((await live_engine(world.market)).fleet) == 0
    assert world.market.book.checked_at_ms == looked_ms
    world.advance(ms=60_000 + check_ms)
    await keep_fresh(world.market)  # nobody has asked for a while: nothing is read
    assert world.market.book.checked_at_ms == looked_ms


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


async def test_nobody_gets_a_job_after_its_queue_timeout_also_where_no_sweep_has_ended_it_yet(world: World) -> None:
    client, node = await make_client(world), await join(world)
    await client.submit(spec(limits={"queue_timeout": "60s"}))
    world.advance(seconds=60)
    await node.heartbeat()

    assert await match_pending(world.market) == 0


async def test_who_declined_for_good_is_not_asked_again(world: World) -> None:
    client, node = await make_client(world), await join(world)
    await client.submit(spec(limits={"queue_timeout": "1h"}))
    assert await match_pending(world.market) == 1
    node.expect(Granted)
    await node.ok(Declined(detail="no such jobs", code="kind_denied"))
    node.read()

    await let_pass(world, seconds=1800, nodes=(node,))

    assert await match_pending(world.market) == 0
