"""Cancel, in every state."""

from __future__ import annotations

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_protocol.api import JobView
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.messages import Accepted, Granted, Stop, UsageCountersigned
from torg_protocol.states import EndReason, JobState, LeaseState

PRICE = 3_600_000  # one base unit per useful millisecond


async def submitted(world: World, **changes: object) -> tuple[Client, Node, JobView]:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    return client, node, await client.submit(spec(**changes))


async def test_queued_is_cancelled_at_once_for_free(world: World) -> None:
    client, _, job = await submitted(world)
    view = await client.cancel(job.job_id)

    assert (view.state, view.reason, view.final_amount) == (JobState.CANCELLED, EndReason.CANCELLED, 0)
    assert await match_pending(world.market) == 0
    assert (await client.cancel(job.job_id)).state is JobState.CANCELLED  # safe to repeat


async def test_leased_is_stopped_and_billed_to_the_exit(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=20)
    view = await client.cancel(job.job_id)
    assert (view.state, view.leases[0].state) == (JobState.LEASED, LeaseState.STOPPING)
    assert node.expect(Stop).reason is EndReason.CANCELLED
    world.advance(seconds=5)  # the grace that the container takes
    await node.finish(EndReason.CANCELLED, exit_code=143, outputs={"partial": b"p"})
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.CANCELLED, EndReason.CANCELLED, 25_000)
    assert [output.path for output in view.outputs] == ["partial"]


async def test_a_stop_that_got_lost_is_repeated(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    await client.cancel(job.job_id)
    world.links.take_all(node.id)
    await node.heartbeat()

    node.expect(Stop)
    await node.heartbeat()
    assert node.read() == []  # it says that it is stopping


async def test_cancelled_before_the_node_has_answered(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await client.cancel(job.job_id)
    grant, stop = node.read()
    assert isinstance(grant, Granted)
    assert isinstance(stop, Stop)
    await let_pass(world, seconds=10, nodes=(node,))
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.final_amount) == (JobState.CANCELLED, LeaseState.VERIFIED, 0)


async def test_accepting_after_the_cancel_is_no_error(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await client.cancel(job.job_id)
    node.read()
    await node.ok(Accepted())
    await node.ok(node.report(EndReason.CANCELLED, exit_code=None))
    node.read()

    assert (await client.job(job.job_id)).state is JobState.CANCELLED


async def test_on_an_unreachable_node_it_is_cancelled_at_once_and_the_hold_stays(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    await let_pass(world, seconds=20, nodes=(node,))
    await let_pass(world, seconds=30)  # silent, but still connected: unknown
    view = await client.cancel(job.job_id)
    assert (view.state, view.final_amount) == (JobState.CANCELLED, None)

    # It was only the line: the node went on for five minutes, which nobody needed.
    await let_pass(world, seconds=240)
    await node.heartbeat()
    await node.finish(EndReason.CANCELLED, exit_code=143)
    node.read()
    view = await client.job(job.job_id)
    assert view.state is JobState.CANCELLED
    assert view.final_amount == 50_000 + world.market.policy.stop_grace_ms + world.market.policy.usage_skew_ms
    assert view.leases[0].unbilled_ms == 0


async def test_asking_again_does_not_make_it_dearer(world: World) -> None:
    """What is billed of a node that could not be told counts from the first time."""
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    await let_pass(world, seconds=20, nodes=(node,))
    assert (await client.cancel(job.job_id)).state is JobState.LEASED  # and the line breaks

    await let_pass(world, seconds=40)
    assert (await client.cancel(job.job_id)).state is JobState.CANCELLED
    await node.heartbeat()
    await node.finish(EndReason.CANCELLED, exit_code=143)
    node.read()
    view = await client.job(job.job_id)
    assert view.final_amount == 20_000 + world.market.policy.stop_grace_ms + world.market.policy.usage_skew_ms


async def test_a_cancelled_job_whose_node_is_lost_ends_cancelled(world: World) -> None:
    client, node, job = await submitted(world, lease_grace="60s")
    await match_pending(world.market)
    await node.accept_and_start()
    await client.cancel(job.job_id)
    await let_pass(world, seconds=60)
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state, view.final_amount) == (JobState.CANCELLED, LeaseState.LOST, 0)


async def test_what_was_finished_before_the_stop_arrived_is_delivered(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=20)
    await client.cancel(job.job_id)
    await node.finish(outputs={"a": b"a"})
    node.read()

    assert (await client.job(job.job_id)).state is JobState.SUCCEEDED


async def test_too_late_while_it_is_verified(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(metric_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=20)
    await node.finish(outputs={"model.safetensors": b"weights"})

    with pytest.raises(Conflict) as caught:
        await client.cancel(job.job_id)
    assert caught.value.code == "already_reported"
    node.expect(UsageCountersigned)


async def test_too_late_when_it_has_ended(world: World) -> None:
    client, node, job = await submitted(world)
    await match_pending(world.market)
    await node.accept_and_start()
    await node.finish()
    node.read()

    with pytest.raises(Conflict) as caught:
        await client.cancel(job.job_id)
    assert caught.value.code == "job_ended"


async def test_nobody_elses(world: World) -> None:
    _, _, job = await submitted(world)
    stranger = await make_client(world)

    with pytest.raises(NotFound) as caught:
        await stranger.cancel(job.job_id)
    assert caught.value.code == "job_unknown"
