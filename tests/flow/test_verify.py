"""Verdicts: what is measured again before it is paid."""

from __future__ import annotations

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_marketplace.flow.blobs import may_read_blob
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.ports import Measurement
from torg_protocol.api import JobView
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Invalid
from torg_protocol.messages import Granted
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
WEIGHTS = b"weights"


async def reported(world: World, **changes: object) -> tuple[Client, Node, JobView]:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    job = await client.submit(metric_spec(world, **changes))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    await node.finish(outputs={"model.safetensors": WEIGHTS})
    node.read()
    return client, node, job


async def client_can_read(world: World, client: Client, data: bytes) -> bool:
    async with world.market.reading() as unit:
        return await may_read_blob(unit, client.account, sha256_digest(data))


async def test_work_that_passes_is_paid_and_handed_over(world: World) -> None:
    client, node, job = await reported(world)
    assert (await client.job(job.job_id)).outputs == ()
    assert not await client_can_read(world, client, WEIGHTS)
    world.evaluator.will_measure(accuracy="0.97")
    assert await verify_pending(world.market) == 1
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 60_600)
    assert await client_can_read(world, client, WEIGHTS)
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    shown = {"accuracy": "0.97", "seed": str(world.evaluator.seeds[0])}  # with it anybody measures again
    assert (receipt.receipt.verdict.result, receipt.receipt.verdict.measured) == ("passed", shown)
    assert world.evaluator.files == [{"model.safetensors": sha256_digest(WEIGHTS)}]
    assert await verify_pending(world.market) == 0


async def test_work_below_the_target_is_not_paid_and_goes_to_another_node(world: World) -> None:
    client, node, job = await reported(world)
    other = await join(world, price=PRICE)
    world.evaluator.will_measure(accuracy="0.9499")
    assert await verify_pending(world.market) == 1
    node.read()

    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.state, receipt.receipt.reason) == (LeaseState.REJECTED, EndReason.VERIFICATION_REJECTED)
    assert (receipt.receipt.amount, receipt.receipt.unbilled_ms, receipt.usage) == (0, 60_000, ())

    assert await match_pending(world.market) == 1
    await other.accept_and_start()
    world.advance(seconds=30)
    await other.finish(outputs={"model.safetensors": b"better weights"})
    world.evaluator.will_measure(accuracy="0.98")
    await verify_pending(world.market)
    other.read()
    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 30_300)
    assert not await client_can_read(world, client, WEIGHTS)
    assert world.evaluator.seeds[0] != world.evaluator.seeds[1]


async def test_made_up_outputs_fail_the_job_when_no_attempt_is_left(world: World) -> None:
    client, node, job = await reported(world, retry={"max_attempts": 1})
    world.evaluator.script.append(Measurement(detail="model.safetensors: not a safetensors file"))
    await verify_pending(world.market)
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.VERIFICATION_REJECTED, 0)
    assert view.leases[0].detail == "model.safetensors: not a safetensors file"


async def test_an_evaluator_that_fails_is_tried_again_and_then_nobody_is_blamed(world: World) -> None:
    client, node, job = await reported(world)
    for _ in range(world.market.policy.verify_attempts):
        world.evaluator.will_fail("no sandbox")
        await verify_pending(world.market)
        await let_pass(world, seconds=10, nodes=(node,))
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.final_amount) == (JobState.FAILED, LeaseState.INCONCLUSIVE, 0)
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.verdict.result, receipt.receipt.verdict.detail) == ("inconclusive", "no sandbox")


async def test_an_evaluator_that_recovers_decides(world: World) -> None:
    client, node, job = await reported(world)
    world.evaluator.will_fail("no sandbox")
    assert await verify_pending(world.market) == 0
    assert await verify_pending(world.market) == 0  # not yet: nothing is scripted
    await let_pass(world, seconds=10, nodes=(node,))
    world.evaluator.will_measure(accuracy="0.95")
    assert await verify_pending(world.market) == 1
    node.read()

    assert (await client.job(job.job_id)).state is JobState.SUCCEEDED


async def test_a_verdict_has_a_deadline(world: World) -> None:
    client, node, job = await reported(world)
    world.evaluator.will_fail("no sandbox")
    await let_pass(world, seconds=world.market.policy.verification_window_s, nodes=(node,))
    await verify_pending(world.market)
    node.read()

    assert (await client.job(job.job_id)).leases[0].state is LeaseState.INCONCLUSIVE


async def test_checkpoint_seconds_of_a_measured_job_wait_for_its_verdict(world: World) -> None:
    """A node must not be paid for a checkpoint that leads nowhere."""
    first, second = await join(world, price=PRICE), await join(world, price=PRICE + 1)
    client = await make_client(world)
    job = await client.submit(metric_spec(world, lease_grace="60s", checkpoint={"enabled": True}))
    await match_pending(world.market)
    await first.accept_and_start()
    await let_pass(world, seconds=30, nodes=(first, second))
    await first.checkpoint()
    await let_pass(world, seconds=60, nodes=(second,))
    first.read()
    assert await client.receipts(job.job_id) == ()  # lost, not decided

    await match_pending(world.market)
    await second.accept_and_start()
    world.advance(seconds=10)
    await second.finish(outputs={"model.safetensors": WEIGHTS})
    world.evaluator.will_measure(accuracy="0.99")
    await verify_pending(world.market)
    first.read()
    second.read()

    receipts = await client.receipts(job.job_id)
    assert [item.receipt.billed_ms for item in receipts] == [30_000, 10_000]
    assert all(verify_receipt(item, marketplace=world.market.public_key) == [] for item in receipts)
    assert (await client.job(job.job_id)).final_amount == 40_400


async def test_a_rejected_attempt_starts_again_from_nothing(world: World) -> None:
    first, second = await join(world, price=PRICE), await join(world, price=PRICE + 1)
    third = await join(world, price=PRICE + 2)
    client = await make_client(world)
    job = await client.submit(metric_spec(world, lease_grace="60s", checkpoint={"enabled": True}))
    await match_pending(world.market)
    await first.accept_and_start()
    await let_pass(world, seconds=30, nodes=(first, second, third))
    await first.checkpoint()
    await let_pass(world, seconds=60, nodes=(second, third))
    await match_pending(world.market)
    await second.accept_and_start()
    world.advance(seconds=10)
    await second.finish(outputs={"model.safetensors": WEIGHTS})
    world.evaluator.will_measure(accuracy="0.10")
    await verify_pending(world.market)
    await match_pending(world.market)
    first.read()
    second.read()

    assert third.expect(Granted).signed.grant.resume_from is None
    assert [item.receipt.amount for item in await client.receipts(job.job_id)] == [0, 0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"workspace": None}, "workspace_not_catalogue"),
        ({"target": "0.89"}, "target_too_low"),
        ({"target": "high"}, "target_invalid"),
        ({"outputs": []}, "outputs_undeclared"),
    ],
)
async def test_only_the_catalogues_own_work_can_be_measured(world: World, change: dict[str, object], code: str) -> None:
    await join(world)
    client = await make_client(world)
    with pytest.raises(Invalid) as caught:
        await client.submit(metric_spec(world, **change))
    assert caught.value.code == code


async def test_an_unknown_catalogue_workload_is_refused(world: World) -> None:
    await join(world)
    client = await make_client(world)
    verify = {"policy": "metric", "catalogue": "nothing", "metric": "accuracy", "target": "0.9"}
    with pytest.raises(Invalid) as caught:
        await client.submit(spec(verify=verify))
    assert caught.value.code == "catalogue_unknown"


async def test_cancelled_before_its_result_came_a_job_whose_result_is_rejected_ends_cancelled(world: World) -> None:
    """It was stuck in verifying: a verdict that sends a job back into the queue met the wish that it be in none."""
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(metric_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    await client.cancel(job.job_id)
    await node.finish(outputs={"model.safetensors": WEIGHTS})
    node.read()
    world.evaluator.will_measure(accuracy="0.1")

    assert await verify_pending(world.market) == 1
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, 0)


OWN_FAILURES = [
    (EndReason.FAILED_EXIT, 1),
    (EndReason.OOM, None),
    (EndReason.DISK_FULL, None),
    (EndReason.OUTPUT_MISSING, 0),
    (EndReason.MAX_DURATION, None),
]


@pytest.mark.parametrize(("reason", "exit_code"), OWN_FAILURES)
async def test_who_idles_and_says_that_the_job_failed_by_itself_is_not_paid(
    world: World, reason: EndReason, exit_code: int | None
) -> None:
    """It was the cheapest lie of all: no work, no verdict, the whole price, and a better name."""
    node, client = await join(world, price=PRICE), await make_client(world)
    job = await client.submit(metric_spec(world, limits={"max_duration": "60s"}))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    said = EndReason.COMPLETED if reason is EndReason.OUTPUT_MISSING else reason
    await node.finish(said, exit_code, outputs={"rest.txt": b"what is there"})
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, reason, 0)
    assert view.leases[0].state is LeaseState.INCONCLUSIVE
    assert not await client_can_read(world, client, b"what is there"), "what is not paid is not handed over"
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.verdict.result, receipt.receipt.unbilled_ms) == ("inconclusive", 60_000)
    async with world.market.reading() as unit:
        row = await node_row(unit, node.id)
        assert (row.leases_kept, row.leases_broken) == (0, 0), "neither praised nor blamed"


async def test_what_a_cancelled_job_had_done_is_paid_whatever_its_node_says_of_its_end(world: World) -> None:
    """The client's own choice: it has no right to a verdict that it did not wait for."""
    node, client = await join(world, price=PRICE), await make_client(world)
    job = await client.submit(metric_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    await client.cancel(job.job_id)
    await node.finish(EndReason.FAILED_EXIT, 143, outputs={"partial": b"what is there"})
    node.read()
    assert (await client.job(job.job_id)).final_amount == 60_000
    assert await client_can_read(world, client, b"what is there"), "it is paid for"


async def test_checkpoint_seconds_are_not_paid_when_nothing_came_of_the_job(world: World) -> None:
    """Who writes anything as a checkpoint and leaves was paid for it, when the next node ran out of time."""
    first, second = await join(world, price=PRICE), await join(world, price=PRICE + 1)
    client = await make_client(world)
    limits = {"max_duration": "2m"}
    job = await client.submit(metric_spec(world, lease_grace="60s", checkpoint={"enabled": True}, limits=limits))
    await match_pending(world.market)
    await first.accept_and_start()
    await let_pass(world, seconds=30, nodes=(first, second))
    await first.checkpoint()
    await let_pass(world, seconds=60, nodes=(second,))
    await match_pending(world.market)
    await second.accept_and_start()
    world.advance(seconds=60)
    await second.finish(EndReason.FAILED_EXIT, 1)
    first.read()
    second.read()

    assert (await client.job(job.job_id)).final_amount == 0
    assert [item.receipt.amount for item in await client.receipts(job.job_id)] == [0, 0]
