"""Gangs: one attempt on several nodes at once. All of them or none; it ends as a whole, and nobody pays for the fault of another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.grant import NotGrantable, grant
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row
from torg_marketplace.storage import ledger
from torg_protocol.api import JobView, LeaseView
from torg_protocol.errors import Infeasible
from torg_protocol.ids import JobId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.messages import Abandon, Accepted, Declined, Granted, Released, Stop
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond


async def gang(world: World, nodes: list[Node], **members: Any) -> tuple[Client, JobId]:
    """A job that was granted to these nodes, by rank."""
    client = await make_client(world)
    job = await client.submit(wide(len(nodes), checkpoint={"enabled": True}, **members))
    await give(world, job.job_id, nodes)
    return client, job.job_id


def wide(size: int, *, same_region: bool = False, **members: Any) -> dict[str, Any]:
    return spec(gang={"size": size, "same_region": same_region}, **members)


async def give(world: World, job_id: JobId, nodes: list[Node]) -> None:
    async with world.market.transaction() as unit:
        await grant(unit, await job_row(unit, job_id), [node.id for node in nodes])


async def nodes_of(world: World, count: int) -> list[Node]:
    return [await join(world, price=PRICE) for _ in range(count)]


async def all_start(nodes: list[Node]) -> None:
    for node in nodes:
        await node.accept_and_start()


def newest(view: JobView) -> list[LeaseView]:
    last = max(lease.attempt for lease in view.leases)
    return [lease for lease in view.leases if lease.attempt == last]


async def check_books(world: World, client: Client, job_id: JobId) -> None:
    """Receipts hold, and their sum is what the job has cost."""
    view, receipts = await client.job(job_id), await client.receipts(job_id)
    assert all(verify_receipt(item, marketplace=world.market.public_key) == [] for item in receipts)
    assert sum(item.receipt.amount for item in receipts) == view.final_amount
    async with world.market.reading() as unit:
        assert await ledger.problems(unit.session) == []
        assert await ledger.balance(unit.session, ledger.held(job_id)) == 0


async def test_all_start_work_and_finish_and_all_are_paid(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await gang(world, nodes)
    grants = [node.expect(Granted).signed.grant for node in nodes]
    assert [(grant.gang.rank, grant.gang.size) for grant in grants if grant.gang] == [(0, 3), (1, 3), (2, 3)]
    assert len({grant.fence for grant in grants}) == len({grant.attempt for grant in grants}) == 1
    assert sum(grant.max_amount for grant in grants) <= (await client.job(job_id)).max_amount
    for node in nodes:
        await node.ok(Accepted())
        await node.start()
    await let_pass(world, seconds=60, nodes=tuple(nodes))
    await nodes[0].finish(outputs={"model": b"of rank 0"})
    await nodes[1].finish()
    half = await client.job(job_id)
    assert (half.state, [lease.state for lease in half.leases]) == (
        JobState.LEASED,
        [LeaseState.REPORTED, LeaseState.REPORTED, LeaseState.RUNNING],
    )
    assert await client.receipts(job_id) == ()
    await nodes[2].finish()

    view = await client.job(job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 180_000)
    assert [lease.billed_ms for lease in view.leases] == [60_000] * 3
    assert [output.path for output in view.outputs] == ["model"]
    await check_books(world, client, job_id)
    for node in nodes:
        node.read()


async def test_time_counts_from_when_the_last_one_starts(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await nodes[0].accept_and_start()
    await nodes[1].accept()
    await let_pass(world, seconds=30, nodes=tuple(nodes))
    await nodes[0].ok(nodes[0].claim())
    await nodes[1].start()
    await let_pass(world, seconds=60, nodes=tuple(nodes))
    for node in nodes:
        await node.finish()
    for node in nodes:
        node.read()
    view = await client.job(job_id)
    assert [(lease.billed_ms, lease.unbilled_ms) for lease in view.leases] == [(60_000, 30_000), (60_000, 0)]
    await check_books(world, client, job_id)


@pytest.mark.parametrize("accepted", [False, True])
async def test_one_that_declines_frees_all(world: World, accepted: bool) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await gang(world, nodes)
    for node in nodes:
        node.expect(Granted)
    if accepted:
        await nodes[0].ok(Accepted())
    await nodes[2].ok(Declined(detail="no"))
    view = await client.job(job_id)
    assert (view.state, [lease.state for lease in view.leases]) == (JobState.QUEUED, [LeaseState.RELEASED] * 3)
    assert [lease.reason for lease in view.leases] == [EndReason.GANG_ENDED] * 2 + [EndReason.DECLINED]
    for node in nodes[:2]:
        assert any(isinstance(message, Abandon) for message in node.read())
    nodes[2].read()
    async with world.market.reading() as unit:
        row = await job_row(unit, job_id)
        assert (list(row.paused_nodes), row.attempts) == ([nodes[2].id], 0)

    again = [*nodes[:2], await join(world, price=PRICE)]
    await match_pending(world.market)  # the units are free again
    await all_start(again)
    for node in again:
        await node.finish()
    for node in again:
        node.read()
    view = await client.job(job_id)
    assert (view.state, [lease.attempt for lease in view.leases]) == (JobState.SUCCEEDED, [1, 1, 1, 2, 2, 2])
    await check_books(world, client, job_id)


async def test_a_lost_node_ends_the_attempt_and_the_others_keep_what_a_checkpoint_keeps(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=60, nodes=tuple(nodes))
    await nodes[0].checkpoint("half")
    await let_pass(world, seconds=30, nodes=tuple(nodes))
    # The process of rank 1 notices first that its peer is gone, and fails: that is not the job's own failure.
    await nodes[1].finish(EndReason.FAILED_EXIT, 1)
    assert isinstance(nodes[0].read()[-1], Stop)
    await nodes[0].ok(Released(reason=EndReason.GANG_ENDED))
    assert (await client.job(job_id)).state is JobState.LEASED
    await let_pass(world, seconds=400, nodes=tuple(nodes[:2]))

    view = await client.job(job_id)
    assert (view.state, view.reason) == (JobState.QUEUED, EndReason.NODE_LOST)
    assert [lease.reason for lease in view.leases] == [
        EndReason.GANG_ENDED,
        EndReason.FAILED_EXIT,
        EndReason.NODE_LOST,
    ]
    assert [lease.billed_ms for lease in view.leases] == [60_000] * 3
    async with world.market.reading() as unit:
        row = await job_row(unit, job_id)
        assert (row.excluded_nodes, row.attempts, row.own_failures) == ([nodes[2].id], 1, 0)
        assert row.checkpoint is not None
        assert row.checkpoint["name"] == "half"
    for node in nodes:
        node.read()
    await client.cancel(job_id)
    await check_books(world, client, job_id)


async def test_its_own_failure_is_the_jobs_and_all_are_paid_for_their_work(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[1].finish(EndReason.FAILED_EXIT, 3)
    assert isinstance(nodes[0].read()[-1], Stop)
    await nodes[0].exit(EndReason.GANG_ENDED, None)
    await nodes[0].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert (view.state, view.reason) == (JobState.FAILED, EndReason.FAILED_EXIT)
    assert view.detail.startswith("rank 1 on ")
    assert [lease.billed_ms for lease in view.leases] == [20_000, 20_000]
    await check_books(world, client, job_id)
    for node in nodes:
        node.read()


async def test_a_cancelled_gang_stops_everywhere(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await client.cancel(job_id)
    for node in nodes:
        assert node.expect(Stop).reason is EndReason.CANCELLED
        await node.finish(EndReason.CANCELLED, None)
    for node in nodes:
        node.read()
    view = await client.job(job_id)
    assert (view.state, [lease.billed_ms for lease in view.leases]) == (JobState.CANCELLED, [20_000, 20_000])
    await check_books(world, client, job_id)


async def test_a_gang_that_a_node_broke_is_not_billed_further_for_being_cancelled_then(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[1].ok(Released(reason=EndReason.HOST_PROTECTION))
    assert nodes[0].expect(Stop).reason is EndReason.GANG_ENDED
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await client.cancel(job_id)
    await nodes[0].exit(EndReason.GANG_ENDED, None)
    await nodes[0].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert [lease.reason for lease in view.leases] == [EndReason.GANG_ENDED, EndReason.HOST_PROTECTION]
    assert (view.state, [lease.billed_ms for lease in view.leases]) == (JobState.CANCELLED, [0, 0])
    await check_books(world, client, job_id)
    for node in nodes:
        node.read()


async def test_a_member_that_invents_the_end_of_its_gang_is_at_fault(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[1].ok(Released(reason=EndReason.GANG_ENDED))
    await nodes[0].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert [lease.reason for lease in view.leases] == [EndReason.GANG_ENDED, EndReason.HOST_PROTECTION]
    assert view.state is JobState.QUEUED
    for node in nodes:
        node.read()


async def test_a_member_that_has_completed_ends_nobodys_gang(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    await nodes[0].finish()
    await nodes[1].ok(Released(reason=EndReason.GANG_ENDED))
    view = await client.job(job_id)
    assert [lease.reason for lease in view.leases] == [EndReason.COMPLETED, EndReason.HOST_PROTECTION]
    assert view.state is JobState.QUEUED
    for node in nodes:
        node.read()


async def test_one_busy_node_and_nobody_gets_anything(world: World) -> None:
    nodes = await nodes_of(world, 2)
    client = await make_client(world)
    single, both = await client.submit(spec()), await client.submit(wide(2))
    await give(world, single.job_id, nodes[1:])
    with pytest.raises(NotGrantable):
        await give(world, both.job_id, nodes)
    with pytest.raises(NotGrantable):
        await give(world, both.job_id, nodes[:1])
    await match_pending(world.market)
    view = await client.job(both.job_id)
    assert (view.state, view.leases) == (JobState.QUEUED, ())
    nodes[1].expect(Granted)
    assert nodes[0].read() == []
    assert view.waiting_for is not None
    assert view.waiting_for.startswith(
        "1 of the 2 nodes that it needs at once are free; 2 are kept for it, and free within "
    )


async def test_gangs_that_race_for_the_same_nodes_do_not_wait_for_each_other(world: World) -> None:
    nodes = await nodes_of(world, 3)
    client = await make_client(world)
    jobs = [await client.submit(wide(3)) for _ in range(4)]

    async def try_it(job_id: JobId, order: list[Node]) -> bool:
        try:
            await give(world, job_id, order)
        except NotGrantable:
            return False
        return True

    orders = [nodes, nodes[::-1], [nodes[1], nodes[0], nodes[2]], nodes[1:] + nodes[:1]]
    won = await asyncio.gather(*[try_it(job.job_id, order) for job, order in zip(jobs, orders, strict=True)])
    assert won.count(True) == 1
    for node in nodes:
        node.expect(Granted)


async def test_members_that_end_at_the_same_moment_are_both_noticed(world: World) -> None:
    """Each event is a transaction of its own: whoever comes last must see the other one's end."""
    nodes = await nodes_of(world, 2)
    client, job_id = await gang(world, nodes)
    await all_start(nodes)
    await let_pass(world, seconds=20, nodes=tuple(nodes))
    for node in nodes:
        await node.exit()
    await asyncio.gather(*[node.ok(node.report()) for node in nodes])
    assert (await client.job(job_id)).state is JobState.SUCCEEDED
    for node in nodes:
        node.read()


async def test_a_quote_covers_all_members_and_says_when_there_are_too_few_nodes(world: World) -> None:
    for price in (1, 2, 3):
        await join(world, price=price * PRICE)
    client = await make_client(world)
    one_hour = {"limits": {"max_duration": "1h"}, "retry": {"max_attempts": 1}}
    quoted = await client.quote(wide(2, **one_hour))
    assert (quoted.feasible, quoted.nodes_at_once, quoted.max_amount) == (True, 2, 2 * 2 * PRICE)
    refused = await client.quote(wide(4, **one_hour))
    assert (refused.feasible, refused.max_amount) == (False, None)
    assert [(item.constraint, item.asked, item.best_available) for item in refused.constraints] == [
        ("gang", "4 nodes at once", "3")
    ]
    with pytest.raises(Infeasible):
        await client.submit(wide(4, **one_hour), cap=client.signed_cap(load_job_spec(wide(4)), 1))


async def test_matched_to_the_cheapest_nodes_each_at_its_own_price(world: World) -> None:
    dear, cheap, middle = [await join(world, price=price * PRICE) for price in (3, 1, 2)]
    client = await make_client(world)
    job = await client.submit(wide(2, retry={"max_attempts": 1}))
    await match_pending(world.market)
    view = await client.job(job.job_id)
    assert [(lease.rank, lease.node, lease.price_per_gpu_hour) for lease in view.leases] == [
        (0, cheap.id, PRICE),
        (1, middle.id, 2 * PRICE),
    ]
    shares = [node.expect(Granted).signed.grant.max_amount for node in (cheap, middle)]
    assert 2 * shares[0] == shares[1]
    assert dear.read() == []


async def test_small_jobs_that_come_later_cannot_keep_a_gang_out(world: World) -> None:
    """They go onto a kept node only when they end before the gang could start."""
    nodes, client = await nodes_of(world, 2), await make_client(world)
    await let_pass(world, seconds=1, nodes=tuple(nodes))
    earlier = await make_client(world)
    first = await earlier.submit(spec(limits={"max_duration": "30m"}))
    await give(world, first.job_id, nodes[:1])
    await nodes[0].accept_and_start()
    both = await client.submit(wide(2))
    world.advance(seconds=1)
    later = await make_client(world)
    long, short = [await later.submit(spec(limits={"max_duration": limit})) for limit in ("40m", "20m")]
    assert await match_pending(world.market) == 1
    views = [await later.job(job.job_id) for job in (long, short)]
    assert [view.state for view in views] == [JobState.QUEUED, JobState.LEASED]
    await nodes[1].accept_and_start()
    await nodes[0].finish()
    await match_pending(world.market)  # one is free, and kept
    waits = await later.job(long.job_id)
    assert waits.state is JobState.QUEUED
    assert (waits.waiting_for or "").startswith("the nodes that are free are kept for a job on several nodes")
    await nodes[1].finish()
    assert await match_pending(world.market) == 1
    assert (await client.job(both.job_id)).state is JobState.LEASED
    for node in nodes:
        node.read()
