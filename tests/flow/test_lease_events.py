"""Events of a lease: each once, in order, under the fence."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.storage.models import LeaseEventRow
from torg_protocol.api import JobView
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import (
    Abandon,
    Accepted,
    Acknowledge,
    CheckpointRef,
    CheckpointStored,
    Declined,
    Granted,
    Released,
    Reported,
)
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import OutputFile

MISSING = BlobRef(digest="sha256:" + "0" * 64, size_bytes=3)


async def granted(world: World, **changes: object) -> tuple[Client, Node, JobView]:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec(**changes))
    await match_pending(world.market)
    return client, node, job


async def test_an_event_is_applied_once_and_acknowledged_each_time(world: World) -> None:
    client, node, job = await granted(world)
    await node.accept()
    again = await node.tell(Accepted(), sequence=1)

    assert again == Acknowledge(lease_id=node.lease.grant.lease_id, sequence=1)
    states = [event.data["state"] for event in await client.events(job.job_id) if event.kind == "lease"]
    assert states == ["granted", "preparing"]
    async with world.market.reading() as unit:
        assert len((await unit.session.scalars(select(LeaseEventRow))).all()) == 1


async def test_a_gap_is_refused_and_not_taken(world: World) -> None:
    _, node, _ = await granted(world)
    node.expect(Granted)
    answer = await node.tell(Accepted(), sequence=2)

    assert (answer.problem["code"], answer.problem["acknowledged"]) == ("event_out_of_order", 0)
    await node.ok(Accepted())


async def test_what_can_never_be_taken_counts_as_taken(world: World) -> None:
    """Or a node would resend it for ever."""
    _, node, _ = await granted(world)
    await node.accept()

    assert await node.refused(Accepted()) == "illegal_move"
    again = await node.tell(Accepted(), sequence=2)
    assert isinstance(again, Acknowledge)
    node.lease.started_at_ms = world.clock.now_ms()
    await node.ok(node.started())


async def test_another_fence_is_refused_and_abandoned(world: World) -> None:
    _, node, _ = await granted(world)
    await node.accept()
    lease_id = node.lease.grant.lease_id

    assert await node.refused(Accepted(), fence=7) == "lease_stale"
    assert node.read() == [Abandon(lease_id=lease_id)]


async def test_another_nodes_lease_is_unknown(world: World) -> None:
    _, node, _ = await granted(world)
    await node.accept()
    thief = await join(world)
    thief.held = node.held

    assert await thief.refused(Accepted(), sequence=2) == "lease_unknown"
    thief.expect(Abandon)


async def test_late_results_of_a_lost_lease_are_not_paid(world: World) -> None:
    client, node, job = await granted(world, lease_grace="60s", retry={"max_attempts": 1})
    await node.accept()
    await node.start()
    held = dict(node.held)
    await let_pass(world, seconds=70)
    assert [type(message) for message in node.read()][-1] is Abandon
    node.held = held

    assert await node.refused(node.report()) == "lease_stale"
    node.expect(Abandon)
    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.NODE_LOST, 0)


async def test_declining_costs_nothing_and_the_job_goes_elsewhere(world: World) -> None:
    client, node, job = await granted(world, retry={"max_attempts": 1})
    other = await join(world)
    node.expect(Granted)
    await node.ok(Declined(detail="busy with games"))
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.leases[0].detail) == (
        JobState.QUEUED,
        LeaseState.RELEASED,
        "busy with games",
    )
    assert await match_pending(world.market) == 1
    await other.accept()  # not the first one again, though it is as cheap


async def test_a_checkpoint_counts_when_its_blob_is_stored(world: World) -> None:
    client, node, job = await granted(world, checkpoint={"enabled": True})
    await node.accept_and_start()
    world.advance(seconds=10)
    ref = CheckpointRef(name="one", blob=MISSING, useful_ms=9_000, written_at_ms=world.clock.now_ms())

    assert await node.refused(CheckpointStored(checkpoint=ref)) == "blob_missing"
    assert (await client.job(job.job_id)).leases[0].newest_checkpoint is None

    stored = ref.model_copy(update={"blob": world.blobs.put(b"abc")})
    assert isinstance(await node.tell(CheckpointStored(checkpoint=stored), sequence=3), Acknowledge)
    assert (await client.job(job.job_id)).leases[0].newest_checkpoint == "one"


async def test_a_checkpoint_of_another_size_is_refused(world: World) -> None:
    _, node, _ = await granted(world, checkpoint={"enabled": True})
    await node.accept_and_start()
    blob = world.blobs.put(b"abc").model_copy(update={"size_bytes": 4})
    ref = CheckpointRef(name="one", blob=blob, useful_ms=0, written_at_ms=world.clock.now_ms())

    assert await node.refused(CheckpointStored(checkpoint=ref)) == "blob_size_mismatch"


async def test_a_report_waits_for_its_blobs(world: World) -> None:
    client, node, job = await granted(world)
    await node.accept_and_start()
    world.advance(seconds=10)
    await node.exit()
    output = OutputFile(path="a", digest=MISSING.digest, size_bytes=3)
    report = Reported(reason=EndReason.COMPLETED, exit_code=0, outputs=(output,))

    assert await node.refused(report) == "blob_missing"
    assert (await client.job(job.job_id)).state is JobState.LEASED


async def test_a_declared_output_that_is_missing_fails_the_job(world: World) -> None:
    client, node, job = await granted(world, outputs=["model.bin", "plots"])
    await node.accept_and_start()
    world.advance(seconds=10)
    await node.finish(outputs={"plots/loss.png": b"png"})
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.detail) == (JobState.FAILED, EndReason.OUTPUT_MISSING, "missing: model.bin")
    assert [output.path for output in view.outputs] == ["plots/loss.png"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
async def test_an_output_outside_of_the_result_is_refused(world: World, path: str) -> None:
    _, node, _ = await granted(world)
    await node.accept_and_start()

    assert await node.refused(node.report(outputs={path: b"x"})) == "path_unsafe"


@pytest.mark.parametrize(
    "reason", [EndReason.NODE_LOST, EndReason.QUEUE_DEADLINE, EndReason.VERIFICATION_REJECTED, EndReason.COMPLETED]
)
async def test_a_node_cannot_release_for_reasons_that_are_not_its_own(world: World, reason: EndReason) -> None:
    _, node, _ = await granted(world)
    await node.accept_and_start()

    assert await node.refused(Released(reason=reason)) == "reason_invalid"


@pytest.mark.parametrize("reason", [EndReason.CANCELLED, EndReason.MAX_DURATION, EndReason.BUDGET])
async def test_a_reason_that_we_know_to_be_wrong_is_the_nodes_fault(world: World, reason: EndReason) -> None:
    """Or a node could be paid in full for a job that it stopped at will."""
    client, node, job = await granted(world)
    await node.accept_and_start()
    world.advance(seconds=10)
    await node.finish(reason, exit_code=None)
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].reason) == (JobState.QUEUED, EndReason.HOST_PROTECTION)
    assert (view.leases[0].amount, view.leases[0].unbilled_ms) == (0, 10_000)


async def test_nothing_follows_a_report(world: World) -> None:
    _, node, _ = await granted(world)
    await node.accept_and_start()
    world.advance(seconds=10)
    await node.exit()
    held = dict(node.held)
    await node.ok(node.report())
    node.read()
    node.held = held

    assert await node.refused(Released(reason=EndReason.DRAINED)) == "already_reported"
    assert node.read() == []


async def test_a_lease_tells_its_own_time(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept()
    world.advance(seconds=5)
    await node.start()
    world.advance(seconds=60)
    await node.exit()
    world.advance(seconds=3)
    await node.ok(node.report())
    node.read()

    (lease,) = (await client.job(job.job_id)).leases
    start_ms = lease.granted_at_ms + 5_000
    assert (lease.started_at_ms, lease.exited_at_ms) == (start_ms, start_ms + 60_000)
    assert {lease.reported_at_ms, lease.ended_at_ms, lease.decided_at_ms} == {start_ms + 63_000}
    assert (lease.stop_reason, lease.stop_requested_at_ms) == (None, None)


async def test_what_has_started_cannot_be_declined(world: World) -> None:
    client, node, job = await granted(world)
    await node.accept_and_start()
    assert await node.refused(Declined(detail="on second thoughts")) == "already_started"
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING
