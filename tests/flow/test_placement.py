"""Wishes about nodes, from the job's file to the node that gets it, and the words for those that nobody fulfils."""

from __future__ import annotations

from tests.support.actors import TUSD, Node, join, let_pass, make_client, make_node, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import node_row
from torg_protocol.messages import Granted
from torg_protocol.states import EndReason


async def join_in(world: World, region: str, price: int = TUSD) -> Node:
    node = make_node(world, price=price)
    node.offer = node.offer.model_copy(update={"region": region})
    await node.connect()
    return node


async def test_a_job_runs_in_its_region_though_another_is_cheaper(world: World) -> None:
    cheap, wanted = await join_in(world, "us-east"), await join_in(world, "eu-north", 2 * TUSD)
    client = await make_client(world)
    await client.submit(spec(placement={"regions": ["eu-north", "eu-west"]}))
    assert await match_pending(world.market) == 1

    wanted.expect(Granted)
    assert cheap.read() == []
    quote = await client.quote(spec(placement={"regions": ["asia"]}))
    first = quote.constraints[0]
    assert (quote.feasible, first.constraint, first.asked, first.best_available) == (
        False,
        "region",
        "asia",
        "eu-north, us-east",
    )
    assert (first.nodes_without_it, first.cheapest_without_it) == (2, TUSD)


async def test_a_node_that_lost_leases_falls_below_a_floor_and_loses_against_equals(world: World) -> None:
    bad = await join(world)
    client = await make_client(world)
    await client.submit(spec(lease_grace="60s"))
    await match_pending(world.market)
    await bad.accept_and_start()
    await let_pass(world, seconds=70)
    await bad.heartbeat()
    bad.read()
    floor = spec(placement={"min_reliability_percent": 95})
    quote = await client.quote(floor)
    reputation = next(item for item in quote.constraints if item.constraint == "reputation")
    assert (quote.feasible, reputation.asked, reputation.best_available) == (False, "95.0 %", "90.9 %")

    good = await join(world)
    await client.submit(floor)
    assert await match_pending(world.market) >= 1
    assert any(isinstance(message, Granted) for message in good.read())
    bad.read()


async def test_work_that_was_seen_through_counts_for_the_node(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    for reason, code in ((EndReason.COMPLETED, 0), (EndReason.FAILED_EXIT, 1)):
        await client.submit(spec())
        await match_pending(world.market)
        await node.accept_and_start()
        await node.finish(reason, code)
        node.read()
    async with world.market.reading() as unit:
        row = await node_row(unit, node.id)
        assert (row.leases_kept, row.leases_broken) == (2, 0)


async def run_on(world: World, nodes: list[Node]) -> Node:
    """Matches the one waiting job, runs it to its end, and says where."""
    assert await match_pending(world.market) == 1
    (node,) = [node for node in nodes if world.links._inboxes[node.id]]
    await node.accept_and_start()
    await node.finish()
    node.read()
    return node


async def test_who_ran_the_image_lately_gets_the_next_one_of_equals(world: World) -> None:
    nodes = [await join(world) for _ in range(4)]
    client = await make_client(world)
    await client.submit(spec())
    usual = await run_on(world, nodes)  # of equals always the same
    await client.submit(spec(image="registry.example/trainer:1", excluded_nodes=[usual.id]))
    warm = await run_on(world, nodes)
    assert warm is not usual

    await client.submit(spec(image="registry.example/trainer:1"))
    assert await run_on(world, nodes) is warm
    await client.submit(spec())
    assert await run_on(world, nodes) is usual


async def test_priority_orders_the_jobs_of_one_account(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec(name="ordinary"))
    world.advance(seconds=5)
    await client.submit(spec(name="urgent", placement={"priority": 1}))
    assert await match_pending(world.market) == 1
    assert node.expect(Granted).signed.grant.spec.name == "urgent"
