"""The table of outcomes, against what the code does: one driven lease for each end reason, by real flows on a real database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.actors import Client, Node, let_pass, make_client, make_node, spec
from tests.support.catalogue import metric_spec
from tests.support.market import World, open_world
from torg_marketplace.flow.liveness import sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.rules.outcomes import JobHistory, ending, ending_of_look, is_looked_at_first
from torg_protocol.jobspec import Retry
from torg_protocol.messages import Declined, Granted, Released
from torg_protocol.states import OUTCOMES, Billing, EndReason, Exclusion, Fault, JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
RAN_MS, CHECKPOINT_MS = 60_000, 30_000
Drive = Callable[[World, Client, Node], Awaitable[None]]


async def run_a_minute(world: World, node: Node) -> None:
    await node.accept_and_start()
    await let_pass(world, seconds=CHECKPOINT_MS // 1000, nodes=(node,))
    await node.checkpoint()
    await let_pass(world, seconds=(RAN_MS - CHECKPOINT_MS) // 1000, nodes=(node,))


def reported(reason: EndReason) -> Drive:
    async def drive(world: World, client: Client, node: Node) -> None:
        await run_a_minute(world, node)
        exit_code = {EndReason.COMPLETED: 0, EndReason.OUTPUT_MISSING: 0, EndReason.FAILED_EXIT: 1}.get(reason)
        await node.finish(reason, exit_code)

    return drive


def released(reason: EndReason, *, started: bool) -> Drive:
    async def drive(world: World, client: Client, node: Node) -> None:
        if started:
            await run_a_minute(world, node)
        else:
            await node.accept()
        await node.ok(Released(reason=reason))

    return drive


async def cancelled(world: World, client: Client, node: Node) -> None:
    await run_a_minute(world, node)
    (held,) = node.held.values()
    await client.cancel(held.grant.job_id)
    await node.finish(EndReason.CANCELLED, None)


async def declined(world: World, client: Client, node: Node) -> None:
    node.expect(Granted)
    await node.ok(Declined(detail="no"))


async def lost(world: World, client: Client, node: Node) -> None:
    await run_a_minute(world, node)
    await let_pass(world, seconds=300)


async def preempted(world: World, client: Client, node: Node) -> None:
    await run_a_minute(world, node)
    await client.submit(spec())
    await match_pending(world.market)
    await node.ok(Released(reason=EndReason.PREEMPTED))


async def stale(world: World, client: Client, node: Node) -> None:
    await run_a_minute(world, node)
    node.lease.grant = node.lease.grant.model_copy(update={"fence": 9})
    await node.connect()


async def rejected(world: World, client: Client, node: Node) -> None:
    await run_a_minute(world, node)
    await node.finish(outputs={"model.safetensors": b"made up"})
    world.evaluator.will_measure(accuracy="0.1")
    await verify_pending(world.market)


async def queue_deadline(world: World, client: Client, node: Node) -> None:
    """The one reason that ends a job and no lease: its grant was declined, and nobody else came."""
    await declined(world, client, node)
    world.advance(seconds=600)
    await sweep(world.market)


DRIVES: dict[EndReason, Drive] = {
    **{
        reason: reported(reason)
        for reason in (
            EndReason.COMPLETED,
            EndReason.FAILED_EXIT,
            EndReason.OOM,
            EndReason.DISK_FULL,
            EndReason.OUTPUT_MISSING,
            EndReason.MAX_DURATION,
            EndReason.BUDGET,
        )
    },
    EndReason.CANCELLED: cancelled,
    EndReason.QUEUE_DEADLINE: queue_deadline,
    EndReason.IMAGE_NOT_FOUND: released(EndReason.IMAGE_NOT_FOUND, started=False),
    EndReason.INPUT_INVALID: released(EndReason.INPUT_INVALID, started=False),
    EndReason.DECLINED: declined,
    EndReason.START_FAILED: released(EndReason.START_FAILED, started=False),
    EndReason.DRAINED: released(EndReason.DRAINED, started=True),
    EndReason.PREEMPTED: preempted,
    EndReason.HOST_PROTECTION: released(EndReason.HOST_PROTECTION, started=True),
    EndReason.EXPOSURE_LIMIT: released(EndReason.EXPOSURE_LIMIT, started=True),
    EndReason.NODE_LOST: lost,
    EndReason.STALE: stale,
    EndReason.VERIFICATION_REJECTED: rejected,
}
LIMITS = {
    EndReason.MAX_DURATION: {"max_duration": "60s"},
    EndReason.BUDGET: {"max_cost": "0.06"},
}


@pytest.mark.parametrize("reason", DRIVES)
async def test_the_code_does_what_the_table_says(tmp_path: Path, reason: EndReason) -> None:
    outcome = OUTCOMES[reason]
    async with open_world(tmp_path) as world:
        node, client = make_node(world, price=PRICE), await make_client(world)
        node.offer = node.offer.model_copy(update={"spot_price_per_gpu_hour": PRICE})
        await node.connect()
        members = {"checkpoint": {"enabled": True}, "limits": LIMITS.get(reason, {})}
        members["spot"] = reason is EndReason.PREEMPTED
        is_measured = reason is EndReason.VERIFICATION_REJECTED
        job = await client.submit(metric_spec(world, **members) if is_measured else spec(**members))
        await match_pending(world.market)
        await DRIVES[reason](world, client, node)

        view, events = await client.job(job.job_id), await client.events(job.job_id)
        (lease,) = view.leases
        assert view.reason is reason
        if reason is not EndReason.QUEUE_DEADLINE:
            assert lease.reason is reason
        lease_states = [event.data["state"] for event in events if event.kind == "lease"]
        job_states = [event.data["state"] for event in events if event.kind == "job"]
        assert outcome.lease in lease_states
        assert outcome.job in job_states[2:]  # after queued and leased
        # Where the table says REPORTED, the lease is decided at once here: nothing is to be measured.
        decided = {LeaseState.REPORTED: LeaseState.VERIFIED}.get(outcome.lease, outcome.lease)
        assert lease.state is decided
        assert view.state is {JobState.VERIFYING: JobState.SUCCEEDED}.get(outcome.job, outcome.job)
        billed = {Billing.FULL: RAN_MS, Billing.CHECKPOINT: CHECKPOINT_MS, Billing.NONE: 0}[outcome.billing]
        assert (lease.billed_ms, lease.amount) == (billed, billed)
        async with world.market.reading() as unit:
            row = await job_row(unit, job.job_id)
            if reason is not EndReason.QUEUE_DEADLINE:
                assert (node.id in row.excluded_nodes) is (outcome.excludes is Exclusion.LASTING)
                assert (node.id in row.paused_nodes) is (outcome.excludes is Exclusion.PASSING)
        (receipt,) = await client.receipts(job.job_id)
        assert verify_receipt(receipt, marketplace=world.market.public_key) == []
        assert receipt.receipt.amount == billed
        if outcome.job is JobState.QUEUED:
            await client.cancel(job.job_id)
        final = await client.job(job.job_id)
        assert final.final_amount == billed


def test_every_reason_has_a_drive() -> None:
    """GANG_ENDED needs a gang: tests/flow/test_gangs.py."""
    assert {*DRIVES, EndReason.GANG_ENDED} == set(EndReason) == set(OUTCOMES)


def history(attempts: int = 0, own_failures: int = 0, *, cancel_requested: bool = False) -> JobHistory:
    return JobHistory(attempts, own_failures, cancel_requested)


def test_faults_of_nodes_are_bounded_by_max_attempts() -> None:
    retry = Retry(max_attempts=3)
    assert [ending(EndReason.NODE_LOST, retry, history(n)).job for n in (0, 1, 2)] == [
        JobState.QUEUED,
        JobState.QUEUED,
        JobState.FAILED,
    ]


def test_declined_grants_are_not_attempts() -> None:
    decision = ending(EndReason.DECLINED, Retry(max_attempts=1), history())
    assert not decision.renews_queue_timeout  # or a job that nobody takes would wait for ever
    assert ending(EndReason.NODE_LOST, Retry(), history()).renews_queue_timeout
    assert (decision.job, decision.counts, OUTCOMES[EndReason.DECLINED].excludes) == (
        JobState.QUEUED,
        False,
        Exclusion.PASSING,
    )


def test_own_failures_have_their_own_budget() -> None:
    retry = Retry(max_attempts=2, on_failure=2)
    assert ending(EndReason.FAILED_EXIT, retry, history()).job is JobState.QUEUED
    assert ending(EndReason.FAILED_EXIT, retry, history(1, 1)).job is JobState.QUEUED
    assert ending(EndReason.FAILED_EXIT, retry, history(2, 2)).job is JobState.FAILED
    # Two own failures have not used up the attempts that faults of nodes may cost.
    assert ending(EndReason.NODE_LOST, retry, history(2, 2)).job is JobState.QUEUED
    assert ending(EndReason.NODE_LOST, retry, history(3, 2)).job is JobState.FAILED


def test_a_memory_limit_is_met_again_at_once_and_not_retried() -> None:
    assert ending(EndReason.OOM, Retry(on_failure=5), history()).job is JobState.FAILED


@pytest.mark.parametrize("reason", [reason for reason in EndReason if OUTCOMES[reason].job is JobState.QUEUED])
def test_nothing_is_tried_again_after_a_cancel(reason: EndReason) -> None:
    assert ending(reason, Retry(), history(cancel_requested=True)).job is JobState.CANCELLED


@pytest.mark.parametrize("reason", EndReason)
def test_only_work_that_did_not_pass_is_never_gone_on_from(reason: EndReason) -> None:
    assert ending(reason, Retry(), history()).drops_checkpoint == (reason is EndReason.VERIFICATION_REJECTED)


@pytest.mark.parametrize(
    ("policy", "to", "has_checkpoint", "looked"),
    [
        ("replay", JobState.QUEUED, True, True),
        ("replay", JobState.QUEUED, False, False),
        ("replay", JobState.CANCELLED, True, False),
        ("metric", JobState.QUEUED, True, False),
        ("none", JobState.QUEUED, True, False),
    ],
)
def test_only_a_replay_can_tell_of_checkpoints_before_there_is_a_result(
    policy: str, to: JobState, has_checkpoint: bool, looked: bool
) -> None:
    assert is_looked_at_first(policy, to, has_checkpoint=has_checkpoint) is looked


@pytest.mark.parametrize("reason", [reason for reason in EndReason if OUTCOMES[reason].job is JobState.QUEUED])
def test_a_lie_about_a_checkpoint_is_one_attempt_however_its_lease_ended(reason: EndReason) -> None:
    was = ending(reason, Retry(max_attempts=2), history())
    look = ending_of_look(reason, Retry(max_attempts=2), history(was.counts), failed=True)
    assert (was.counts + look.counts, look.job) == (1, JobState.QUEUED)
    last = ending_of_look(reason, Retry(max_attempts=1), history(was.counts), failed=True)
    assert last.job is JobState.FAILED


def test_who_lied_about_a_checkpoint_is_not_believed_about_the_job_either() -> None:
    retry = Retry(max_attempts=3, on_failure=1)
    assert ending(EndReason.FAILED_EXIT, retry, history()).own_failure == 1
    look = ending_of_look(EndReason.FAILED_EXIT, retry, history(1, 1), failed=True)
    assert (look.own_failure, look.counts, look.job) == (-1, False, JobState.QUEUED)
    assert ending_of_look(EndReason.FAILED_EXIT, retry, history(1, 1), failed=False).own_failure == 0
    assert (
        ending_of_look(EndReason.FAILED_EXIT, Retry(max_attempts=1), history(1, 1), failed=True).job is JobState.FAILED
    )


@pytest.mark.parametrize("failed", [False, True])
def test_after_a_cancel_a_look_ends_the_job(failed: bool) -> None:
    look = ending_of_look(EndReason.NODE_LOST, Retry(), history(1, cancel_requested=True), failed=failed)
    assert look.job is JobState.CANCELLED


@pytest.mark.parametrize("reason", [reason for reason in EndReason if OUTCOMES[reason].fault is Fault.NODE])
def test_faults_of_nodes_never_end_a_job_at_once(reason: EndReason) -> None:
    assert ending(reason, Retry(), history()).job is JobState.QUEUED
