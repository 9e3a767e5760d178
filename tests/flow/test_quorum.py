"""Verification by quorum: equal outputs are paid, others cost stake, and no more replicas run than are needed."""

from __future__ import annotations

import pytest

from tests.flow.test_slash import STAKE, join_with_stake, slashes
from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.blobs import may_read_blob
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.verify import verify_pending
from torg_protocol.api import JobView
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Infeasible, Invalid
from torg_protocol.messages import Accepted
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
RIGHT, WRONG = b"the result", b"something else"


def quorum_spec(replicas: int = 3, **changes: object) -> dict[str, object]:
    members = {"verify": {"policy": "quorum", "replicas": replicas}, "outputs": ["result.txt"]}
    return spec(**members | changes)


async def run_next(world: World, nodes: list[Node], output: bytes) -> Node:
    """The next replica, wherever it was granted."""
    assert await match_pending(world.market) == 1
    for node in nodes:
        node.read()
    (node,) = [node for node in nodes if node.held]
    await node.ok(Accepted())
    node.lease.state = LeaseState.PREPARING
    await node.start()
    world.advance(seconds=10)
    await node.finish(outputs={"result.txt": output})
    await verify_pending(world.market)
    node.read()
    node.held.clear()
    return node


async def quorum(world: World, outputs: list[bytes], replicas: int = 3) -> tuple[Client, list[Node], JobView]:
    """A job whose replicas hand over these outputs, in this order; each on a node of its own, with stake."""
    nodes, client = [await join_with_stake(world) for _ in range(replicas)], await make_client(world)
    job = await client.submit(quorum_spec(replicas))
    ran = [await run_next(world, nodes, output) for output in outputs]
    assert len({node.id for node in ran}) == len(outputs), "no node runs two replicas"
    for node in nodes:
        node.read()
    return client, ran, await client.job(job.job_id)


async def client_can_read(world: World, client: Client, data: bytes) -> bool:
    async with world.market.reading() as unit:
        return await may_read_blob(unit, client.account, sha256_digest(data))


async def test_two_equal_ones_of_three_are_enough_and_the_third_never_runs(world: World) -> None:
    client, _, view = await quorum(world, [RIGHT, RIGHT])
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    assert [lease.state for lease in view.leases] == [LeaseState.VERIFIED, LeaseState.VERIFIED]
    assert await match_pending(world.market) == 0
    receipts = await client.receipts(view.job_id)
    assert [item.receipt.verdict.result for item in receipts] == ["passed", "passed"]
    assert receipts[0].receipt.verdict.measured["agree"] == "2"
    assert all(verify_receipt(item, marketplace=world.market.public_key) == [] for item in receipts)
    assert await client_can_read(world, client, RIGHT)
    assert await slashes(world) == []


@pytest.mark.parametrize("liar", [0, 1])
async def test_who_hands_over_something_else_is_not_paid_and_loses_stake(world: World, liar: int) -> None:
    outputs = [RIGHT, RIGHT]
    outputs.insert(liar, WRONG)
    client, ran, view = await quorum(world, outputs)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 20_000)
    assert [lease.state for lease in view.leases].index(LeaseState.REJECTED) == liar
    (slash,) = await slashes(world)
    assert slash.node_id == ran[liar].id
    assert 0 < slash.amount <= STAKE
    assert await client_can_read(world, client, RIGHT)
    assert not await client_can_read(world, client, WRONG)
    assert [item.digest for item in view.outputs] == [sha256_digest(RIGHT)]


async def test_when_all_differ_nobody_is_paid_and_nobody_is_blamed(world: World) -> None:
    client, _, view = await quorum(world, [b"one", b"two", b"three"])
    assert (view.state, view.final_amount, view.outputs) == (JobState.FAILED, 0, ())
    assert {lease.state for lease in view.leases} == {LeaseState.INCONCLUSIVE}
    assert await slashes(world) == []
    assert not await client_can_read(world, client, b"one")


async def test_it_stops_as_soon_as_no_majority_can_come_about_any_more(world: World) -> None:
    _, _, view = await quorum(world, [b"1", b"2", b"3", b"4"], replicas=5)
    assert (view.state, len(view.leases)) == (JobState.FAILED, 4)


async def test_the_quote_holds_each_replicas_share_and_a_lease_gets_no_more(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    single, threefold = await client.quote(spec()), await client.quote(quorum_spec())
    assert threefold.max_amount == 3 * (single.max_amount or 0)
    job = await client.submit(quorum_spec())
    node = await run_next(world, nodes, RIGHT)
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].node) == (JobState.QUEUED, LeaseState.REPORTED, node.id)
    assert not await client_can_read(world, client, RIGHT), "sealed while other replicas may still be made"
    await client.cancel(job.job_id)
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 10_000)
    for each in nodes:
        each.read()


async def test_one_owner_does_not_run_two_replicas(world: World) -> None:
    nodes = [await join(world, price=PRICE) for _ in range(3)]
    twin = nodes[1]
    twin.offer = twin.offer.model_copy(update={"payout_address": nodes[0].offer.payout_address, "sequence": 2})
    await twin.connect()
    client = await make_client(world)
    job = await client.submit(quorum_spec(limits={"max_duration": "1h", "queue_timeout": "60s"}))
    first = await run_next(world, nodes, RIGHT)
    if first is nodes[2]:
        second = await run_next(world, nodes, WRONG)
        assert second is not nodes[2]
    else:
        assert await run_next(world, nodes, WRONG) is nodes[2]
    assert await match_pending(world.market) == 0
    await let_pass(world, seconds=80, nodes=tuple(nodes))
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.EXPIRED, 0), (
        "no third owner: nothing is known, nobody is charged"
    )
    assert {lease.state for lease in view.leases} == {LeaseState.INCONCLUSIVE}
    for node in nodes:
        node.read()


async def test_a_quorum_needs_nodes_outputs_and_no_checkpoints(world: World) -> None:
    node, client = await join(world, price=PRICE), await make_client(world)
    await join(world, price=PRICE)
    with pytest.raises(Infeasible) as too_few:
        await client.submit(quorum_spec())
    assert (too_few.value.code, too_few.value.field) == ("quorum_too_large", "verify.replicas")
    for changes, field in (({"checkpoint": {"enabled": True}}, "verify"), ({"outputs": []}, "outputs")):
        with pytest.raises(Invalid) as refused:
            await client.quote(quorum_spec(**changes))
        assert refused.value.field == field
    node.read()


async def test_a_replica_that_was_ready_before_its_cancel_reached_it_is_the_last_one(world: World) -> None:
    nodes, client = [await join(world, price=PRICE) for _ in range(3)], await make_client(world)
    job = await client.submit(quorum_spec())
    await match_pending(world.market)
    for each in nodes:
        each.read()
    (node,) = [each for each in nodes if each.held]
    await node.ok(Accepted())
    node.lease.state = LeaseState.PREPARING
    await node.start()
    world.advance(seconds=10)
    await node.disconnect()
    await client.cancel(job.job_id)
    await node.finish(outputs={"result.txt": RIGHT})

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 10_000)
    assert await match_pending(world.market) == 0
