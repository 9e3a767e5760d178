"""Only useful seconds are billed: the claim is clipped to what was seen, and lost work is free beyond a durable checkpoint."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from tests.support.actors import TUSD, Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.storage.money_models import CommitmentRow
from torg_protocol.api import JobView
from torg_protocol.ids import JobId
from torg_protocol.messages import Exited, UsageClaimed, UsageCountersigned
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import SignedReceipt, verify_receipt

MINUTE_MS = 60_000
PRICE = 3_600_000  # one base unit per useful millisecond


async def running(world: World, **changes: object) -> tuple[Client, Node, JobView]:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    job = await client.submit(spec(**{"limits": {"max_duration": "1h"}} | changes))
    await match_pending(world.market)
    await node.accept_and_start()
    return client, node, job


async def only_receipt(client: Client, node: Node, job_id: JobId) -> SignedReceipt:
    node.read()
    (receipt,) = await client.receipts(job_id)
    assert verify_receipt(receipt, marketplace=client.world.market.public_key) == []
    return receipt


async def test_the_nodes_own_record_is_countersigned_when_it_is_right(world: World) -> None:
    client, node, job = await running(world)
    world.advance(seconds=90)
    await node.finish()

    (usage,) = (await only_receipt(client, node, job.job_id)).usage
    assert usage.record == node.countersigned[0].usage.record
    assert usage.record.useful_ms == 90_000
    assert usage.record.final
    assert usage.node_signature is not None


async def test_a_claim_beyond_what_was_seen_is_clipped(world: World) -> None:
    client, node, job = await running(world)
    world.advance(seconds=60)
    now_ms, started_ms = world.clock.now_ms(), node.lease.started_at_ms
    lie = Exited(reason=EndReason.COMPLETED, exit_code=0, started_at_ms=started_ms - 600_000, finished_at_ms=now_ms)
    await node.ok(lie)
    await node.ok(node.claim(useful_ms=660_000, final=True))
    await node.ok(node.report())

    receipt = await only_receipt(client, node, job.job_id)
    assert receipt.receipt.billed_ms == 60_000 + world.market.policy.usage_skew_ms
    assert receipt.usage[0].node_signature is None  # the marketplace's own record: the node signed another


async def test_time_ends_at_the_exit_that_was_seen_whatever_is_claimed(world: World) -> None:
    client, node, job = await running(world)
    world.advance(seconds=10)
    now_ms, started_ms = world.clock.now_ms(), node.lease.started_at_ms
    lie = Exited(reason=EndReason.COMPLETED, exit_code=0, started_at_ms=started_ms - 600_000, finished_at_ms=now_ms)
    await node.ok(lie)
    world.advance(seconds=300)  # a long upload
    await node.ok(node.report())

    receipt = await only_receipt(client, node, job.job_id)
    assert receipt.receipt.billed_ms == 10_000 + world.market.policy.usage_skew_ms


async def test_preparation_is_free_and_time_ends_at_the_exit(world: World) -> None:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    job = await client.submit(spec(limits={"max_duration": "1h"}))
    await match_pending(world.market)
    await node.accept()
    world.advance(seconds=200)
    await node.start()
    world.advance(seconds=10)
    await node.exit()
    world.advance(seconds=300)  # a long upload
    await node.ok(node.report())

    assert (await only_receipt(client, node, job.job_id)).receipt.billed_ms == 10_000


async def test_what_ran_during_our_outage_is_billed(world: World) -> None:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    job = await client.submit(spec(limits={"max_duration": "2h"}))
    await match_pending(world.market)
    await node.accept()
    await node.disconnect()  # the marketplace is gone; the node goes on
    world.advance(seconds=10)
    started_ms = world.clock.now_ms()
    world.advance(ms=30 * MINUTE_MS)
    finished_ms = world.clock.now_ms()
    world.advance(ms=60 * MINUTE_MS)
    await node.connect()
    node.read()
    node.lease.started_at_ms = started_ms
    await node.ok(node.started())
    await node.ok(Exited(reason=EndReason.COMPLETED, exit_code=0, started_at_ms=started_ms, finished_at_ms=finished_ms))
    await node.ok(node.claim(useful_ms=30 * MINUTE_MS, final=True))
    await node.ok(node.report())

    assert (await only_receipt(client, node, job.job_id)).receipt.billed_ms == 30 * MINUTE_MS


async def test_intervals_are_paid_up_to_the_newest_checkpoint_only(world: World) -> None:
    client, node, job = await running(world, checkpoint={"enabled": True})
    world.advance(ms=8 * MINUTE_MS)
    await node.checkpoint()
    world.advance(ms=2 * MINUTE_MS)
    await node.ok(node.claim())

    paid = node.expect(UsageCountersigned).usage
    assert paid.record.useful_ms == 8 * MINUTE_MS
    assert not paid.record.final

    world.advance(ms=5 * MINUTE_MS)
    await node.finish()
    receipt = await only_receipt(client, node, job.job_id)
    assert [item.record.useful_ms for item in receipt.usage] == [8 * MINUTE_MS, 7 * MINUTE_MS]
    assert receipt.receipt.amount == 15 * MINUTE_MS


async def test_a_lease_that_was_captured_to_the_last_unit_before_it_ends_frees_its_range(world: World) -> None:
    _, node, _ = await running(world, checkpoint={"enabled": True}, retry={"max_attempts": 1})
    world.advance(ms=8 * MINUTE_MS)
    await node.checkpoint()
    world.advance(ms=2 * MINUTE_MS)
    await node.ok(node.claim())
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)
    assert not await released(world), "it may earn more"

    await node.disconnect()
    await let_pass(world, seconds=310)  # lost: what came after the checkpoint is free

    assert await released(world)


async def released(world: World) -> bool:
    async with world.market.reading() as unit:
        (commitment,) = await unit.session.scalars(select(CommitmentRow))
        return commitment.released


async def test_without_checkpoints_an_interval_pays_nothing_yet(world: World) -> None:
    client, node, job = await running(world)
    world.advance(ms=10 * MINUTE_MS)
    await node.ok(node.claim())
    assert node.read() == []
    world.advance(ms=MINUTE_MS)
    await node.finish()

    assert (await only_receipt(client, node, job.job_id)).receipt.billed_ms == 11 * MINUTE_MS


async def test_a_lost_node_is_paid_up_to_its_checkpoint_and_no_further(world: World) -> None:
    client, node, job = await running(world, checkpoint={"enabled": True}, retry={"max_attempts": 1})
    world.advance(ms=4 * MINUTE_MS)
    await node.checkpoint()
    await let_pass(world, seconds=120, nodes=(node,))
    await node.disconnect()
    await let_pass(world, seconds=310)

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state) == (JobState.FAILED, LeaseState.LOST)
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.billed_ms, receipt.receipt.unbilled_ms) == (4 * MINUTE_MS, 2 * MINUTE_MS)
    assert receipt.usage[0].node_signature is None
    assert view.final_amount == 4 * MINUTE_MS


async def test_the_budget_is_never_exceeded(world: World) -> None:
    client, node, job = await running(world, limits={"max_duration": "1h", "max_cost": "0.1"})
    world.advance(seconds=130)  # 0.13 at this price
    await node.finish(EndReason.BUDGET, exit_code=None)

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.BUDGET, TUSD // 10)
    assert (await only_receipt(client, node, job.job_id)).receipt.unbilled_ms == 30_000


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 2},
        {"price_per_gpu_hour": PRICE + 1},
        {"amount": 1},
        {"useful_ms": 61_000},
        {"job_id": "job_other"},
        {"vault": "somewhere"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_record_that_is_not_of_this_lease_is_refused(world: World, change: dict[str, object]) -> None:
    _, node, _ = await running(world)
    world.advance(seconds=60)
    record = node.claim().record.model_copy(update=change)
    claim = UsageClaimed(record=record, node_signature=record.sign(node.key))

    assert await node.refused(claim) == "usage_invalid"


async def test_a_record_with_a_foreign_signature_is_refused(world: World) -> None:
    _, node, _ = await running(world)
    world.advance(seconds=60)
    record = node.claim().record
    claim = UsageClaimed(record=record, node_signature=record.sign(world.random.keypair()))

    assert await node.refused(claim) == "usage_invalid"


async def test_a_checkpoint_is_of_no_more_than_was_seen_when_it_came(world: World) -> None:
    """Else a node that says ten hours early on is paid for all until it vanishes."""
    client, node, job = await running(world, checkpoint={"enabled": True}, retry={"max_attempts": 1}, lease_grace="60s")
    world.advance(seconds=60)
    await node.checkpoint("one", useful_ms=10 * 3_600_000)
    await node.checkpoint("two", useful_ms=1)  # nor does it become less
    await let_pass(world, seconds=240, nodes=(node,))
    await node.disconnect()
    await let_pass(world, seconds=70)
    node.read()

    (lease,) = (await client.job(job.job_id)).leases
    assert lease.reason is EndReason.NODE_LOST
    assert lease.billed_ms == 60_000 + world.market.policy.usage_skew_ms


async def test_a_record_that_begins_where_another_was_paid_already_is_not_countersigned(world: World) -> None:
    """A checkpoint proved more than the node had claimed: what it claims next begins within what is recorded."""
    client, node, job = await running(world, checkpoint={"enabled": True})
    world.advance(seconds=20)
    started_ms = node.lease.started_at_ms
    await node.checkpoint(useful_ms=20_000)
    await node.ok(node.claim(useful_ms=10_000))
    world.advance(seconds=20)
    ended_ms = started_ms + 40_000
    await node.ok(Exited(reason=EndReason.COMPLETED, exit_code=0, started_at_ms=started_ms, finished_at_ms=ended_ms))
    record = node.claim(useful_ms=20_000, final=True).record
    early = record.model_copy(update={"start_ms": started_ms + 10_000, "end_ms": started_ms + 30_000})
    await node.ok(UsageClaimed(record=early, node_signature=early.sign(node.key)))
    await node.ok(node.report())

    receipt = await only_receipt(client, node, job.job_id)
    assert [item.record.useful_ms for item in receipt.usage] == [20_000, 20_000]
    assert [item.node_signature for item in receipt.usage] == [None, None]
