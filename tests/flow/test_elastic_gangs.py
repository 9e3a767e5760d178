"""Elastic gangs: one member is lost, the others go on, and each is paid for what its work was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from tests.flow.test_gangs import all_start, check_books, give, nodes_of
from tests.support.actors import Client, Node, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.tunnel import peer_ends
from torg_protocol.errors import Conflict
from torg_protocol.ids import JobId
from torg_protocol.messages import GangMembersLeft, Released, Stop
from torg_protocol.states import EndReason, JobState, LeaseState


async def elastic(world: World, nodes: list[Node], min_size: int, **members: Any) -> tuple[Client, JobId]:
    """Runs on these nodes, by rank."""
    client = await make_client(world)
    gang = {"size": len(nodes), "min_size": min_size}
    job = await client.submit(spec(gang=gang, checkpoint={"enabled": True}, **members))
    await give(world, job.job_id, nodes)
    await all_start(nodes)
    return client, job.job_id


def told(node: Node) -> list[tuple[int, ...]]:
    return [message.ranks for message in node.read() if isinstance(message, GangMembersLeft)]


async def test_the_others_go_on_without_a_lost_node_and_nobody_pays_for_lost_work(world: World) -> None:
    nodes = await nodes_of(world, 4)
    client, job_id = await elastic(world, nodes, 3)
    await let_pass(world, seconds=60, nodes=tuple(nodes))
    await nodes[0].checkpoint("before")
    for node in nodes:
        node.read()
    await let_pass(world, seconds=400, nodes=(nodes[0], nodes[1], nodes[3]))  # rank 2 is silent
    view = await client.job(job_id)
    assert view.state is JobState.LEASED
    assert [lease.state for lease in view.leases] == [
        *(LeaseState.RUNNING, LeaseState.RUNNING, LeaseState.LOST, LeaseState.RUNNING)
    ]
    for node in (nodes[0], nodes[1], nodes[3]):
        ranks = told(node)
        assert len(ranks) > 1  # heartbeats repeat it
        assert set(ranks) == {(2,)}
    async with world.market.reading() as unit:
        left_at_ms = next(row.ended_at_ms for row in view.leases if row.rank == 2)
        job = await job_row(unit, job_id)
        assert (job.excluded_nodes, job.attempts) == ([nodes[2].id], 0)
        with pytest.raises(Conflict, match="that member has gone"):
            await peer_ends(unit, nodes[3].id, view.leases[3].lease_id, 2)
        assert (await peer_ends(unit, nodes[3].id, view.leases[3].lease_id, 1)).node == nodes[1].id
    assert left_at_ms is not None
    again_ms = world.clock.now_ms() - left_at_ms
    await let_pass(world, seconds=60, nodes=(nodes[0], nodes[1], nodes[3]))
    for node in (nodes[0], nodes[1], nodes[3]):
        await node.finish()
    for node in nodes:
        node.read()
    view = await client.job(job_id)
    assert view.state is JobState.SUCCEEDED
    billed = [lease.billed_ms for lease in view.leases]
    assert billed == [60_000 + again_ms + 60_000] * 2 + [60_000] + [60_000 + again_ms + 60_000]
    assert len(await client.receipts(job_id)) == 4
    await check_books(world, client, job_id)


async def test_below_its_least_size_it_ends_and_goes_elsewhere(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await elastic(world, nodes, 2)
    await let_pass(world, seconds=60, nodes=tuple(nodes))
    await nodes[0].checkpoint("before")
    await let_pass(world, seconds=30, nodes=tuple(nodes))
    await nodes[2].ok(Released(reason=EndReason.HOST_PROTECTION))
    assert [message.ranks for message in nodes[1].read() if isinstance(message, GangMembersLeft)] == [(2,)]
    await let_pass(world, seconds=20, nodes=tuple(nodes[:2]))
    await nodes[1].ok(Released(reason=EndReason.DRAINED))
    assert isinstance(nodes[0].read()[-1], Stop)
    await nodes[0].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert (view.state, view.reason) == (JobState.QUEUED, EndReason.DRAINED)
    assert [lease.billed_ms for lease in view.leases] == [60_000] * 3
    async with world.market.reading() as unit:
        job = await job_row(unit, job_id)
        assert (job.excluded_nodes, list(job.paused_nodes)) == ([nodes[2].id], [nodes[1].id])
    more = await nodes_of(world, 2)
    await match_pending(world.market)  # all of them again
    assert [lease.rank for lease in (await client.job(job_id)).leases] == [0, 1, 2, 0, 1, 2]
    for node in (*nodes, *more):
        node.read()


async def test_without_rank_0_it_ends(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await elastic(world, nodes, 1)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[0].ok(Released(reason=EndReason.HOST_PROTECTION))
    for node in nodes[1:]:
        assert isinstance(node.read()[-1], Stop)
        await node.ok(Released(reason=EndReason.GANG_ENDED))
    assert (await client.job(job_id)).state is JobState.QUEUED
    for node in nodes:
        node.read()


async def test_one_that_fails_alone_has_lost_touch_and_when_all_fail_it_was_the_job(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await elastic(world, nodes, 2)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[1].finish(EndReason.FAILED_EXIT, 1)
    assert (await client.job(job_id)).state is JobState.LEASED
    await nodes[2].finish(EndReason.FAILED_EXIT, 1)
    await nodes[0].finish(EndReason.FAILED_EXIT, 1)
    view = await client.job(job_id)
    assert (view.state, view.reason) == (JobState.FAILED, EndReason.FAILED_EXIT)
    assert view.leases[1].billed_ms == 20_000  # it did no worse than the others
    await check_books(world, client, job_id)
    for node in nodes:
        node.read()


async def test_until_all_have_started_it_is_all_or_none(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client = await make_client(world)
    job = await client.submit(spec(gang={"size": 3, "min_size": 1}, checkpoint={"enabled": True}))
    await give(world, job.job_id, nodes)
    for node in nodes[:2]:
        await node.accept_and_start()
    await nodes[2].accept()
    await nodes[2].ok(Released(reason=EndReason.START_FAILED))
    for node in nodes[:2]:
        assert isinstance(node.read()[-1], Stop)
        await node.ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job.job_id)
    assert (view.state, [lease.amount for lease in view.leases]) == (JobState.QUEUED, [0, 0, 0])
    for node in nodes:
        node.read()


async def test_a_cancelled_one_stops_though_enough_would_be_left(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await elastic(world, nodes, 1)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await client.cancel(job_id)
    for node in (nodes[2], nodes[1], nodes[0]):
        assert node.expect(Stop).reason is EndReason.CANCELLED
        await node.finish(EndReason.CANCELLED, None)
    for node in nodes:
        node.read()
    view = await client.job(job_id)
    assert (view.state, [lease.billed_ms for lease in view.leases]) == (JobState.CANCELLED, [20_000] * 3)
    await check_books(world, client, job_id)


async def test_a_member_that_invents_the_end_of_a_gang_that_goes_on_is_at_fault(world: World) -> None:
    nodes = await nodes_of(world, 4)
    client, job_id = await elastic(world, nodes, 2)
    await nodes[3].ok(Released(reason=EndReason.HOST_PROTECTION))
    await nodes[2].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert [lease.reason for lease in view.leases] == [None, None, EndReason.HOST_PROTECTION, EndReason.HOST_PROTECTION]
    for node in nodes:
        node.read()


async def test_a_heartbeat_of_a_whole_gang_asks_for_no_leavers(world: World) -> None:
    nodes = await nodes_of(world, 3)
    await elastic(world, nodes, 2)
    asked: list[str] = []
    engine = world.market.sessions.kw["bind"].sync_engine
    with listening(engine, "before_cursor_execute", lambda _, __, statement, *___: asked.append(statement)):
        await nodes[1].heartbeat()
    assert asked
    assert not [statement for statement in asked if "left_at_ms IS NOT NULL" in statement]
    for node in nodes:
        node.read()


@contextmanager
def listening(target: object, name: str, hear: Callable[..., None]) -> Iterator[None]:
    event.listen(target, name, hear)
    try:
        yield
    finally:
        event.remove(target, name, hear)
