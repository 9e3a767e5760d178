"""Unknown is not lost, and our own silence proves nothing."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import event

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.liveness import on_startup, sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.stream import on_progress
from torg_marketplace.flow.views import node_view
from torg_marketplace.simulation.world import VirtualClock
from torg_protocol.api import JobView, NodeView
from torg_protocol.messages import Abandon, Accepted, Exited, Granted, Progress, ReceiptIssued, Stop
from torg_protocol.states import EndReason, JobState, LeaseState, Liveness

HOUR_S = 3600


async def running(world: World, **changes: object) -> tuple[Client, Node, JobView]:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec(**changes))
    await match_pending(world.market)
    await node.accept_and_start()
    await sweep(world.market)
    return client, node, job


async def seen(world: World, node: Node) -> NodeView:
    async with world.market.reading() as unit:
        return await node_view(unit, node.id)


async def test_a_sweep_asks_as_much_of_many_leases_as_of_one(world: World) -> None:
    node, client = await join(world, slots=6), await make_client(world)
    await sweep(world.market)
    asked: list[int] = []
    for number in range(6):
        await client.submit(spec(env={"NUMBER": str(number)}))
        await match_pending(world.market)
        if number in {0, 5}:
            asked.append(await statements_of_a_sweep(world))
    assert len(node.read()) >= 6
    assert asked[0] == asked[1]


async def statements_of_a_sweep(world: World) -> int:
    statements: list[str] = []
    engine = world.market.sessions.kw["bind"].sync_engine

    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    event.listen(engine, "before_cursor_execute", note)
    try:
        await sweep(world.market)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(statements)


async def test_a_silent_node_is_unknown_then_lost_and_keeps_its_lease_for_the_grace(world: World) -> None:
    client, node, job = await running(world, lease_grace="10m")
    await let_pass(world, seconds=30)
    assert (await seen(world, node)).liveness is Liveness.UNKNOWN
    await let_pass(world, seconds=270)
    assert (await seen(world, node)).liveness is Liveness.LOST
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING

    await node.heartbeat()
    assert (await seen(world, node)).liveness is Liveness.ALIVE
    assert node.read() == []


async def test_what_a_lost_node_did_after_its_checkpoint_is_shown_as_not_billed(world: World) -> None:
    client, node, job = await running(world, lease_grace="60s", checkpoint={"enabled": True}, retry={"max_attempts": 1})
    world.advance(seconds=30)
    await node.checkpoint()
    world.advance(seconds=5)
    last_word = Progress(
        lease_id=node.lease.grant.lease_id,
        fence=node.lease.grant.fence,
        at_ms=world.clock.now_ms(),
        kind="step",
        data={"epoch": 12},
    )
    async with world.market.transaction() as unit:
        await on_progress(unit, node.id, last_word)
    await node.disconnect()
    await let_pass(world, seconds=70)

    lease = (await client.job(job.job_id)).leases[0]
    assert (lease.state, lease.billed_ms, lease.unbilled_ms) == (LeaseState.LOST, 30_000, 5_000)


async def test_what_a_lost_node_did_ends_with_its_container_however_late_it_says_so(world: World) -> None:
    client, node, job = await running(world, lease_grace="60s", retry={"max_attempts": 1})
    now_ms = world.clock.now_ms()
    world.advance(seconds=10)  # the line is slow
    await node.ok(Exited(reason=EndReason.OOM, exit_code=None, started_at_ms=now_ms - 2_000, finished_at_ms=now_ms))
    await node.disconnect()
    await let_pass(world, seconds=70)

    lease = (await client.job(job.job_id)).leases[0]
    assert (lease.state, lease.billed_ms, lease.unbilled_ms) == (LeaseState.LOST, 0, 2_000)


async def test_a_lost_lease_is_tried_again_elsewhere_from_its_checkpoint(world: World) -> None:
    client, node, job = await running(world, lease_grace="60s", checkpoint={"enabled": True})
    other = await join(world)
    await let_pass(world, seconds=30, nodes=(node, other))
    checkpoint = await node.checkpoint()
    await node.disconnect()
    await let_pass(world, seconds=60, nodes=(other,))

    assert (await client.job(job.job_id)).leases[0].reason is EndReason.NODE_LOST
    await node.connect()  # it is back, but it lost this job
    assert await match_pending(world.market) == 1
    grant = other.expect(Granted).signed.grant
    assert grant.resume_from == checkpoint
    assert (grant.attempt, grant.fence) == (2, 2)
    assert grant.max_duration_ms == 3_600_000 - 30_000
    node.read()


async def test_attempts_are_bounded(world: World) -> None:
    node_count = 3
    nodes = [await join(world) for _ in range(node_count)]
    client = await make_client(world)
    job = await client.submit(spec(lease_grace="60s", retry={"max_attempts": 2}))
    for _ in range(2):
        assert await match_pending(world.market) == 1
        (taken,) = [node for node in nodes if node.read()]
        await taken.ok(Accepted())
        await let_pass(world, seconds=60, nodes=tuple(node for node in nodes if node is not taken))
        taken.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason) == (JobState.FAILED, EndReason.NODE_LOST)
    assert view.detail == "all 2 attempts are used up"
    assert await match_pending(world.market) == 0


async def test_our_own_restart_gives_every_lease_a_fresh_grace(world: World) -> None:
    client, node, job = await running(world, lease_grace="60s", limits={"max_duration": "3h"})
    world.advance(seconds=7200)  # killed, and started again
    world.links.disconnect(node.id)
    await on_startup(world.market)
    await sweep(world.market)
    await let_pass(world, seconds=50)
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING
    assert (await seen(world, node)).liveness is not Liveness.ALIVE

    welcome = await node.connect()
    assert [(item.directive, item.acknowledged) for item in welcome.leases] == [("continue", 2)]
    await let_pass(world, seconds=50, nodes=(node,))
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING


async def test_our_own_sleep_is_noticed_without_a_restart(world: World) -> None:
    client, _, job = await running(world, lease_grace="60s")
    world.advance(seconds=3600)
    await sweep(world.market)

    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING


async def test_an_unanswered_grant_goes_elsewhere_and_a_late_acceptance_is_stale(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    node.expect(Granted)
    await let_pass(world, seconds=10)

    held = dict(node.held)
    assert [type(message) for message in node.read()] == [ReceiptIssued, Abandon]
    node.held = held
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].reason) == (
        JobState.QUEUED,
        LeaseState.RELEASED,
        EndReason.DECLINED,
    )
    assert await node.refused(Accepted()) == "lease_stale"
    node.expect(Abandon)


async def test_a_queued_job_expires_at_its_deadline_and_says_why(world: World) -> None:
    await join(world)
    client = await make_client(world)
    first = await client.submit(spec())
    await match_pending(world.market)
    waiting = await client.submit(spec(limits={"queue_timeout": "60s"}))
    await match_pending(world.market)
    assert (await client.job(waiting.job_id)).waiting_for == "all 1 fitting node(s) are busy"
    world.advance(seconds=60)
    await sweep(world.market)

    view = await client.job(waiting.job_id)
    assert (view.state, view.reason) == (JobState.EXPIRED, EndReason.QUEUE_DEADLINE)
    assert view.detail == "all 1 fitting node(s) are busy"
    assert view.final_amount == 0
    assert (await client.job(first.job_id)).job_id == first.job_id
    for node in world.links.connected():
        world.links.take_all(node)


async def test_a_node_that_does_not_stop_at_max_duration_is_told_to(world: World) -> None:
    client, node, job = await running(world, limits={"max_duration": "60s"})
    await let_pass(world, seconds=120, nodes=(node,))
    stop = node.expect(Stop)
    assert stop.reason is EndReason.MAX_DURATION
    await node.finish(EndReason.MAX_DURATION, exit_code=None)
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].billed_ms, view.leases[0].unbilled_ms) == (JobState.FAILED, 60_000, 0)


async def test_preparing_for_ever_is_the_nodes_fault(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept()
    await let_pass(world, seconds=3600, nodes=(node,))

    assert (await client.job(job.job_id)).leases[0].reason is EndReason.START_FAILED
    node.read()


async def test_a_clock_that_is_set_back_costs_nobody_anything(world: World) -> None:
    """What ran, is billed; who is silent, is not heard of for the grace; what waits, waits for as long as it had."""
    client, node, job = await running(world, lease_grace="60s", limits={"max_duration": "2h"})
    waiting = await client.submit(spec(lease_grace="60s", limits={"max_duration": "1h", "queue_timeout": "30m"}))
    node.world = replace(world, clock=VirtualClock(world.clock.now_ms()))  # which nobody sets
    world.advance(seconds=600)
    node.world.advance(seconds=600)
    await sweep(world.market)
    await node.heartbeat()
    world.advance(seconds=-HOUR_S)
    await sweep(world.market)
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING
    (lease,) = (await client.job(job.job_id)).leases
    assert lease.started_at_ms is not None
    assert world.clock.now_ms() - lease.started_at_ms == 600_000

    await node.finish()
    assert (await client.job(job.job_id)).leases[0].billed_ms == 600_000
    node.read()
    await match_pending(world.market)
    await node.accept_and_start()
    await node.disconnect()
    await let_pass(world, seconds=61)
    assert (await client.job(waiting.job_id)).leases[0].reason is EndReason.NODE_LOST


async def test_a_queue_ends_in_its_own_time_when_the_clock_was_ahead(world: World) -> None:
    await join(world)
    client = await make_client(world)
    await sweep(world.market)
    world.advance(seconds=HOUR_S)
    await sweep(world.market)
    job = await client.submit(spec(limits={"max_duration": "1h", "queue_timeout": "10m"}))
    world.advance(seconds=-HOUR_S)
    await on_startup(world.market)
    await let_pass(world, seconds=590)
    assert (await client.job(job.job_id)).state is JobState.QUEUED
    await let_pass(world, seconds=11)
    assert (await client.job(job.job_id)).state is JobState.EXPIRED
