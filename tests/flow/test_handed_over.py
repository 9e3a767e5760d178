"""A lease that is over before its job hands its checkpoints over: whether others go on from them, and who answers for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from tests.flow.test_replay import PRICE, replay_spec
from tests.flow.test_replay_by_nodes import payouts, with_stake
from tests.support.actors import Client, Node, join, let_pass, make_client
from tests.support.credit import open_credit_vault
from tests.support.market import World
from tests.support.replays import EXECUTED, KnowingReplayer, execute
from torg_marketplace.flow.collateral import look_at_collaterals
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.storage.audit_models import SlashRow
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.audits import AuditDraw, check_draw, commitment_root
from torg_protocol.ids import Digest, JobId
from torg_protocol.messages import Accepted, CheckpointRef, Granted, Released
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import SignedReceipt, verify_receipt

WEIGHTS = {"model.safetensors": b"weights"}


@pytest.fixture
def replayer(world: World) -> KnowingReplayer:
    return KnowingReplayer(world)


@pytest.fixture
def market(world: World, replayer: KnowingReplayer) -> World:
    return replace(world, market=replace(world.market, replayer=replayer))


async def submit(world: World, client: Client, **changes: object) -> JobId:
    job = await client.submit(replay_spec(world, lease_grace="20s", **changes))
    return job.job_id


async def trains(node: Node, *others: Node, seconds: int = 10) -> list[CheckpointRef]:
    """Takes the job and stores two checkpoints."""
    await match_pending(node.world.market)
    await node.accept_and_start()
    stored = []
    for number in (1, 2):
        await let_pass(node.world, seconds=seconds, nodes=(node, *others))
        stored.append(await node.checkpoint(f"step-{number:08d}"))
    return stored


async def is_lost(node: Node, *others: Node) -> None:
    await let_pass(node.world, seconds=30, nodes=others)
    node.read()


async def finishes(node: Node) -> None:
    node.world.advance(seconds=10)
    await node.finish(outputs=WEIGHTS)
    await verify_pending(node.world.market)
    node.read()


async def resumed_from(node: Node) -> CheckpointRef | None:
    """What the grant that it gets now says; it starts."""
    await match_pending(node.world.market)
    found = node.expect(Granted).signed.grant.resume_from
    await accepts(node)
    return found


async def accepts(node: Node) -> None:
    await node.ok(Accepted())
    await node.start()


async def receipts(client: Client, job_id: JobId) -> dict[str, SignedReceipt]:
    """By node."""
    found = await client.receipts(job_id)
    assert all(verify_receipt(item, marketplace=client.world.market.public_key) == [] for item in found)
    return {item.receipt.node: item for item in found}


async def standing(world: World, node: Node) -> tuple[int, int]:
    async with world.market.reading() as unit:
        row = await node_row(unit, node.id)
        return row.leases_kept, row.leases_broken


async def slashed(world: World) -> list[tuple[str, int]]:
    async with world.market.reading() as unit:
        rows = await unit.session.scalars(select(SlashRow).order_by(SlashRow.created_at_ms))
        return [(row.node_id, row.amount) for row in rows]


async def attempts(world: World, job_id: JobId) -> int:
    async with world.market.reading() as unit:
        return (await unit.session.get_one(JobRow, job_id)).attempts


def all_of(stored: list[CheckpointRef]) -> set[Digest]:
    return {item.blob.digest for item in stored}


async def test_a_liar_is_found_before_anybody_builds_on_it_and_who_comes_after_is_paid(
    market: World, replayer: KnowingReplayer
) -> None:
    liar, client = await with_stake(market), await make_client(market)
    await look_at_collaterals(market.market)
    job_id = await submit(market, client)
    replayer.lies = all_of(await trains(liar))
    honest = await join(market, price=PRICE)
    await is_lost(liar, honest)
    assert (await client.job(job_id)).state is JobState.VERIFYING
    assert await match_pending(market.market) == 0, "nobody goes on from what is being looked at"

    assert await verify_pending(market.market) == 1
    liar.read()
    view = await client.job(job_id)
    assert (view.state, view.reason) == (JobState.QUEUED, EndReason.VERIFICATION_REJECTED)
    assert view.leases[0].state is LeaseState.REJECTED
    assert await slashed(market) == [(liar.id, 15 * 20_000)]

    assert await resumed_from(honest) is None
    await finishes(honest)
    view, found = await client.job(job_id), await receipts(client, job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 10_200), "and two per cent for the look"
    assert (found[liar.id].receipt.amount, found[liar.id].receipt.unbilled_ms) == (0, 20_000)
    assert found[liar.id].receipt.verdict.result == "failed"
    assert found[honest.id].receipt.verdict.result == "passed"
    assert await standing(market, honest) == (1, 0)
    assert liar.offer.payout_address not in await payouts(market)
    assert len(await slashed(market)) == 1


async def test_honest_checkpoints_are_gone_on_from_and_paid_with_the_result(
    market: World, replayer: KnowingReplayer
) -> None:
    first, client = await with_stake(market), await make_client(market)
    await look_at_collaterals(market.market)
    job_id = await submit(market, client)
    stored = await trains(first)
    second = await join(market, price=PRICE)
    await is_lost(first, second)
    assert await verify_pending(market.market) == 1
    async with market.market.reading() as unit:
        row = (await unit.session.scalars(select(LeaseRow).where(LeaseRow.node_id == first.id))).one()
        assert (row.decided_at_ms, row.stake) == (None, 0), "its stake is free again, its pay waits"
    assert await payouts(market) == {}

    assert await resumed_from(second) == stored[-1]
    await finishes(second)
    first.read()
    found = await receipts(client, job_id)
    assert {node: item.receipt.amount for node, item in found.items()} == {first.id: 20_400, second.id: 10_200}
    assert len(replayer.executed) == 2, "one segment of each"
    shown = found[first.id].receipt.verdict.measured
    root = commitment_root([item.blob.digest for item in stored], [])
    draw = AuditDraw(lease_id=found[first.id].receipt.lease_id, committed=root)
    permille = int(shown["audit_permille"])
    assert check_draw(draw, shown["audit_draw"], market.market.public_key, permille, audited=True) == []


async def test_a_lie_costs_only_what_was_stored_since_its_lease_began(market: World, replayer: KnowingReplayer) -> None:
    """Four attempts: an honest one, two that lie, the first of them unfinished, and one that ends the job from where the honest one was."""
    nodes = [await join(market, price=PRICE + number) for number in range(4)]
    client = await make_client(market)
    job_id = await submit(market, client, retry={"max_attempts": 5})
    stored = await trains(nodes[0], *nodes[1:])
    await is_lost(nodes[0], *nodes[1:])
    await verify_pending(market.market)
    replayer.lies = all_of(await trains(nodes[1], *nodes[2:]))
    await is_lost(nodes[1], *nodes[2:])
    await verify_pending(market.market)
    nodes[1].read()
    assert (await client.job(job_id)).leases[1].state is LeaseState.REJECTED

    assert await resumed_from(nodes[2]) == stored[-1]
    market.advance(seconds=10)
    replayer.lies.add(market.blobs.put(b"another model").digest)
    await nodes[2].finish(outputs={"model.safetensors": b"another model"})
    await nodes[3].heartbeat()
    await verify_pending(market.market)
    nodes[2].read()
    assert (await client.job(job_id)).leases[2].state is LeaseState.REJECTED

    assert await resumed_from(nodes[3]) == stored[-1], "who lies at the end does not cost who was honest before"
    await finishes(nodes[3])
    nodes[0].read()
    found = await receipts(client, job_id)
    assert [found[node.id].receipt.billed_ms for node in nodes] == [20_000, 0, 0, 10_000]
    assert (await client.job(job_id)).final_amount == 30_600


@pytest.mark.parametrize(
    ("reason", "counted"), [(EndReason.NODE_LOST, 1), (EndReason.DRAINED, 1), (EndReason.HOST_PROTECTION, 1)]
)
async def test_however_a_liar_leaves_it_is_looked_at_and_counts_as_one_attempt(
    market: World, replayer: KnowingReplayer, reason: EndReason, counted: int
) -> None:
    liar, client = await join(market, price=PRICE), await make_client(market)
    job_id = await submit(market, client)
    replayer.lies = all_of(await trains(liar))
    other = await join(market, price=PRICE)
    if reason is EndReason.NODE_LOST:
        await is_lost(liar, other)
    else:
        await liar.ok(Released(reason=reason))
    await verify_pending(market.market)
    liar.read()
    assert (await client.job(job_id)).leases[0].state is LeaseState.REJECTED
    assert await attempts(market, job_id) == counted
    assert await resumed_from(other) is None
    await finishes(other)


async def test_when_a_preempted_liar_was_the_last_attempt_the_job_fails(
    market: World, replayer: KnowingReplayer
) -> None:
    """A preemption is no attempt, a lie is one."""
    liar, client = await join(market, price=PRICE), await make_client(market)
    liar.offer = liar.offer.model_copy(update={"sequence": 2, "spot_price_per_gpu_hour": PRICE})
    await liar.connect()
    liar.read()
    job_id = await submit(market, client, spot=True, retry={"max_attempts": 1})
    replayer.lies = all_of(await trains(liar))
    async with market.market.transaction() as unit:
        row = (await unit.session.scalars(select(LeaseRow))).one()
        row.preempted_for = "another"
    await liar.ok(Released(reason=EndReason.PREEMPTED))
    await verify_pending(market.market)
    liar.read()
    view = await client.job(job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.VERIFICATION_REJECTED, 0)


async def test_what_nobody_can_look_at_is_not_gone_on_from_and_blames_nobody(
    market: World, replayer: KnowingReplayer
) -> None:
    first, client = await with_stake(market), await make_client(market)
    await look_at_collaterals(market.market)
    job_id = await submit(market, client)
    await trains(first)
    second = await join(market, price=PRICE)
    await first.ok(Released(reason=EndReason.DRAINED))
    replayer.broken = True
    for _ in range(market.market.policy.verify_attempts):
        assert (await client.job(job_id)).state is JobState.VERIFYING
        await verify_pending(market.market)
        market.advance(ms=market.market.policy.verify_retry_ms)
    first.read()
    replayer.broken = False
    await second.heartbeat()
    assert await resumed_from(second) is None
    await finishes(second)
    found = await receipts(client, job_id)
    assert (found[first.id].receipt.amount, found[first.id].receipt.verdict.result) == (0, "inconclusive")
    assert (found[first.id].receipt.state, await standing(market, first)) == (LeaseState.RELEASED, (0, 0))
    assert await slashed(market) == []
    assert (await client.job(job_id)).final_amount == 10_200


@pytest.mark.parametrize("lies", [False, True])
async def test_a_job_that_is_cancelled_meanwhile_ends_with_the_verdict(
    market: World, replayer: KnowingReplayer, lies: bool
) -> None:
    node, client = await join(market, price=PRICE), await make_client(market)
    job_id = await submit(market, client)
    stored = await trains(node)
    replayer.lies = all_of(stored) if lies else set()
    await is_lost(node)
    asked_ms = market.market.clock.now_ms()
    assert (await client.cancel(job_id)).state is JobState.VERIFYING
    market.advance(seconds=5)
    assert (await client.cancel(job_id)).state is JobState.VERIFYING
    async with market.market.reading() as unit:
        assert (await unit.session.get_one(JobRow, job_id)).cancel_requested_at_ms == asked_ms
    await verify_pending(market.market)
    node.read()
    view = await client.job(job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 0 if lies else 20_000)


@pytest.mark.parametrize("lies", [False, True])
async def test_who_says_that_the_job_failed_hands_over_no_lie_either(
    market: World, replayer: KnowingReplayer, lies: bool
) -> None:
    """It is not paid, whatever it did: but the next one would have gone on from it."""
    first, client = await join(market, price=PRICE), await make_client(market)
    job_id = await submit(market, client, retry={"on_failure": 1})
    stored = await trains(first)
    replayer.lies = all_of(stored) if lies else set()
    second = await join(market, price=PRICE)
    await first.finish(EndReason.FAILED_EXIT, exit_code=1, outputs=WEIGHTS)
    await verify_pending(market.market)
    first.read()
    state = LeaseState.REJECTED if lies else LeaseState.INCONCLUSIVE
    assert (await client.job(job_id)).leases[0].state is state
    if lies:
        assert await resumed_from(second) is None
        await finishes(second)
    else:  # it may have it again: nobody blames it
        await match_pending(market.market)
        (again,) = [node for node in (first, second) if any(isinstance(item, Granted) for item in node.read())]
        assert again.lease.grant.resume_from == stored[-1]
        await accepts(again)
        await finishes(again)
    found = await client.receipts(job_id)
    assert [item.receipt.amount for item in found] == [0, 10_200]


async def test_what_is_not_drawn_is_gone_on_from_at_once(market: World, replayer: KnowingReplayer) -> None:
    """Of six leases at 27 % each, all would be drawn once in 2,600 times; which are, the seed says."""
    first, second = await join(market, price=PRICE), await join(market, price=PRICE + 1)
    client, went_on = await make_client(market), 0
    for _ in range(6):
        async with market.market.transaction() as unit:
            for node in (first, second):
                row = await node_row(unit, node.id)
                row.clean_leases, row.leases_kept = 100, 100
        job_id = await submit(market, client)
        await trains(first, second)
        await first.ok(Released(reason=EndReason.DRAINED))
        if (await client.job(job_id)).state is JobState.QUEUED:
            went_on += 1
            assert await resumed_from(second) is not None
            await finishes(second)
            first.read()
            found = (await receipts(client, job_id))[first.id].receipt
            assert (found.amount, found.verdict.result) == (20_400, "not_checked")
            assert int(found.verdict.measured["audit_permille"]) < 1000
        else:
            await verify_pending(market.market)
            await resumed_from(second)
            await finishes(second)
            first.read()
    assert went_on


async def test_a_node_of_another_owner_looks_at_it_as_at_any_other(world: World) -> None:
    policy = world.market.policy.model_copy(update={"replay_here_below_ms": 0, "unplanted_here_below_ms": 0})
    replayer, key = KnowingReplayer(world), world.random.keypair()
    market = replace(
        world,
        market=replace(
            world.market,
            replayer=replayer,
            credit_key=key,
            policy=policy.model_copy(update={"unplanted_owners": 1, "planted_permille": 0}),
        ),
    )
    replayer.world = market
    await open_credit_vault(market, key)
    first, client = await join(market, price=PRICE), await make_client(market)
    job_id = await submit(market, client)
    await trains(first)
    second = await join(market, price=PRICE)
    await is_lost(first, second)
    await verify_pending(market.market)
    assert (await client.job(job_id)).state is JobState.VERIFYING
    await execute(second, EXECUTED)
    await verify_pending(market.market)
    second.read()
    assert replayer.executed == []
    assert (await client.job(job_id)).state is JobState.QUEUED
    first.read()
