"""Grants: nothing is given twice, whoever races."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from tests.support.actors import TUSD, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.grant import NotGrantable, grant
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row
from torg_marketplace.storage.models import AllocationRow, LeaseRow
from torg_protocol.ids import JobId, NodeId
from torg_protocol.messages import Granted
from torg_protocol.states import EndReason, JobState
from torg_protocol.vault_messages import CapMessage, verify_message


async def try_grant(world: World, job_id: JobId, node_id: NodeId) -> bool:
    try:
        async with world.market.transaction() as unit:
            await grant(unit, await job_row(unit, job_id), [node_id])
    except NotGrantable:
        return False
    return True


async def leases(world: World) -> int:
    async with world.market.reading() as unit:
        return await unit.session.scalar(select(func.count()).select_from(LeaseRow)) or 0


async def test_the_grant_proves_itself(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    signed = node.expect(Granted).signed
    document = signed.grant

    assert document.is_signed_by(world.market.public_key, signed.signature)
    assert document.commitment.is_signed_by(world.market.public_key, document.commitment_signature)
    assert document.commitment.committed_after - document.commitment.committed_before == document.max_amount
    assert document.cap.cap >= document.commitment.committed_after
    message = CapMessage(
        chain_id=world.market.network.chain_id,
        vault=bytes(world.chain.vaults[client.vault].address),
        cap=document.cap.cap,
        valid_until=document.cap.valid_until_s,
    )
    assert verify_message(message, document.cap.signature, str(client.key.pubkey()))
    assert (document.job_id, document.max_amount, document.attempt) == (job.job_id, job.max_amount, 1)


async def test_racing_matchers_give_each_slot_once(world: World) -> None:
    node = await join(world, slots=3)
    client = await make_client(world)
    for number in range(8):
        await client.submit(spec(name=f"job{number}"))
    granted = await asyncio.gather(*(match_pending(world.market) for _ in range(6)))

    assert sum(granted) == await leases(world) == 3
    assert len(node.read()) == 3
    async with world.market.reading() as unit:
        units = (await unit.session.scalars(select(AllocationRow.unit).order_by(AllocationRow.unit))).all()
    assert units == ["slot:0", "slot:1", "slot:2"]


async def test_racing_grants_of_two_jobs_for_the_last_gpus(world: World) -> None:
    node = await join(world, gpus=4)
    client = await make_client(world)
    jobs = [await client.submit(spec(resources={"gpus": 3}, name=f"job{number}")) for number in range(4)]
    outcomes = await asyncio.gather(*(try_grant(world, job.job_id, node.id) for job in jobs))

    assert sum(outcomes) == await leases(world) == 1
    node.expect(Granted)


async def test_racing_grants_of_one_job_to_two_nodes(world: World) -> None:
    nodes = [await join(world) for _ in range(3)]
    client = await make_client(world)
    job = await client.submit(spec())
    results = await asyncio.gather(*(try_grant(world, job.job_id, node.id) for node in nodes), return_exceptions=True)

    assert [result for result in results if result is True] == [True]
    assert await leases(world) == 1
    assert sum(len(node.read()) for node in nodes) == 1


async def test_the_database_itself_refuses_a_unit_twice(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    (held,) = [message.signed.grant for message in node.read() if isinstance(message, Granted)]
    with pytest.raises(IntegrityError):
        async with world.market.transaction() as unit:
            unit.session.add(AllocationRow(node_id=node.id, unit="slot:0", lease_id=held.lease_id))


async def test_memory_is_counted_over_all_leases_of_a_node(world: World) -> None:
    node = await join(world, slots=4, memory_gib=16)
    client = await make_client(world)
    for number in range(3):
        await client.submit(spec(name=f"job{number}", resources={"memory": "6GiB"}))

    assert await match_pending(world.market) == 2
    assert len(node.read()) == 2


async def test_what_a_lease_used_is_free_when_it_ends(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    await client.submit(spec(name="one"))
    await client.submit(spec(name="two"))
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    assert await match_pending(world.market) == 0
    await node.finish()
    node.read()
    assert await match_pending(world.market) == 1
    await node.accept()


async def test_the_cheapest_wins_and_among_equals_the_fullest(world: World) -> None:
    dear, big, small = await join(world, price=2 * TUSD, gpus=1), await join(world, gpus=8), await join(world, gpus=1)
    client = await make_client(world)
    await client.submit(spec(resources={"gpus": 1}))
    await match_pending(world.market)

    small.expect(Granted)
    assert (dear.read(), big.read()) == ([], [])


async def test_excluded_nodes_are_never_used(world: World) -> None:
    node, other = await join(world, price=TUSD // 2), await join(world)
    client = await make_client(world)
    await client.submit(spec(excluded_nodes=[node.id]))
    await match_pending(world.market)

    other.expect(Granted)


async def test_one_that_cannot_start_does_not_block_those_behind(world: World) -> None:
    node = await join(world, gpus=1)
    client = await make_client(world)
    await client.submit(spec(name="first", resources={"gpus": 1}))
    await match_pending(world.market)
    node.expect(Granted)
    await client.submit(spec(name="waits", resources={"gpus": 1}))
    job = await client.submit(spec(name="cpu-only"))

    assert await match_pending(world.market) == 1
    assert node.expect(Granted).signed.grant.job_id == job.job_id


async def test_a_second_attempt_gets_what_is_left(world: World) -> None:
    price = 3_600_000  # one base unit per useful millisecond
    first, second = await join(world, price=price), await join(world, price=price)
    client = await make_client(world)
    job = await client.submit(spec(lease_grace="60s", checkpoint={"enabled": True}, limits={"max_duration": "10m"}))
    await match_pending(world.market)
    (taken,) = [node for node in (first, second) if world.links._inboxes[node.id]]
    other = second if taken is first else first
    await taken.accept_and_start()
    await let_pass(world, seconds=240, nodes=(first, second))
    await taken.checkpoint()
    await let_pass(world, seconds=60, nodes=(other,))
    taken.read()
    await match_pending(world.market)
    document = other.expect(Granted).signed.grant

    assert (document.max_duration_ms, document.max_amount) == (360_000, job.max_amount - 240_000)
    assert document.commitment.committed_before == 240_000  # next to what the first has earned


async def test_a_job_without_money_left_ends(world: World) -> None:
    price = 3_600_000
    first, second = await join(world, price=price), await join(world, price=price + 1)
    client = await make_client(world)
    raw = spec(lease_grace="60s", checkpoint={"enabled": True}, limits={"max_duration": "10m", "max_cost": "0.1"})
    job = await client.submit(raw)
    await match_pending(world.market)
    await first.accept_and_start()
    await let_pass(world, seconds=100, nodes=(first, second))
    await first.checkpoint()
    await let_pass(world, seconds=60, nodes=(second,))
    first.read()
    assert await match_pending(world.market) == 0

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.BUDGET, 100_000)


async def test_a_node_is_not_asked_for_more_unpaid_work_than_it_offers(world: World) -> None:
    node = await join(world, max_unpaid=TUSD // 2)
    client = await make_client(world)
    quote = await client.quote(spec())
    assert (quote.feasible, quote.constraints[0].constraint) == (False, "max_unpaid")

    assert (await client.quote(spec(checkpoint={"enabled": True}))).feasible
    assert node.read() == []
