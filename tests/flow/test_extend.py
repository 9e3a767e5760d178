"""A job lasts longer than its spec said: what is held, who is asked, and what its attempts cost together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_marketplace.flow.extend import extend
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.vaults import vault_view
from torg_protocol.api import ExtendRequest, JobView, VaultView
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import JobId
from torg_protocol.job_cost import full_cost
from torg_protocol.messages import Accepted, Granted
from torg_protocol.states import EndReason, JobState

PRICE = 3_600_000  # one base unit per millisecond
MINUTE_MS = 60_000
SHORT: dict[str, Any] = {"limits": {"max_duration": "60s"}, "checkpoint": {"enabled": True}}


async def ask(client: Client, job: JobView, minutes: int, *, more: int | None = None) -> JobView:
    """Signs a cap for `more`: what the job may cost further, unless said otherwise."""
    longer = job.spec.model_copy(
        update={"limits": job.spec.limits.model_copy(update={"max_duration": minutes * MINUTE_MS})}
    )
    most = full_cost(longer, PRICE, minutes * MINUTE_MS)
    cap = client.signed_cap(longer, most - job.max_amount if more is None else more)
    request = ExtendRequest.model_validate({"max_duration": f"{minutes}m", "cap": cap})
    async with client.world.market.transaction() as unit:
        return await extend(unit, client.account, JobId(job.job_id), request)


async def test_a_wallets_job_needs_a_cap(world: World) -> None:
    client, _, job = await running(world)
    request = ExtendRequest.model_validate({"max_duration": "3m"})
    async with world.market.transaction() as unit:
        with pytest.raises(Invalid) as caught:
            await extend(unit, client.account, JobId(job.job_id), request)
    assert caught.value.code == "cap_missing"


async def vault_of(client: Client) -> VaultView:
    async with client.world.market.reading() as unit:
        return await vault_view(unit, client.account, client.vault)


async def running(world: World, **changes: Any) -> tuple[Client, Node, JobView]:
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(spec(**SHORT | changes))
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    return client, node, job


async def test_a_queued_job_has_a_larger_limit_for_its_next_attempt(world: World) -> None:
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(spec(limits={"max_duration": "60s"}))  # writes no checkpoints, and needs none
    view = await ask(client, job, 3)

    assert (view.max_duration_ms, view.max_amount) == (3 * MINUTE_MS, 180_000)
    assert (await vault_of(client)).open_maximum == 180_000
    assert await match_pending(world.market) == 1
    granted = node.expect(Granted).signed.grant
    assert (granted.max_duration_ms, granted.max_amount) == (3 * MINUTE_MS, 180_000)
    assert granted.commitment.committed_after - granted.commitment.committed_before == 180_000


async def test_a_running_job_goes_on_from_its_newest_checkpoint_when_its_time_is_over(world: World) -> None:
    client, node, job = await running(world, retry={"max_attempts": 1})
    await ask(client, job, 3)
    await let_pass(world, seconds=60, nodes=(node,))
    await node.checkpoint("late")
    await node.finish(EndReason.MAX_DURATION, None)
    node.read()
    assert (await client.job(job.job_id)).state is JobState.QUEUED

    assert await match_pending(world.market) == 1
    granted = node.expect(Granted).signed.grant
    assert (granted.max_duration_ms, granted.max_amount) == (2 * MINUTE_MS, 120_000)
    assert granted.resume_from is not None
    assert granted.resume_from.name == "late"
    await node.ok(Accepted())
    await node.start()
    await let_pass(world, seconds=120, nodes=(node,))
    await node.finish(EndReason.MAX_DURATION, None)
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.reason, view.final_amount) == (JobState.FAILED, EndReason.MAX_DURATION, 180_000)
    assert (await vault_of(client)).open_maximum == 0


async def test_what_is_extended_and_not_used_is_free_again(world: World) -> None:
    client, node, job = await running(world)
    await ask(client, job, 3)
    await let_pass(world, seconds=30, nodes=(node,))
    await node.finish()
    node.read()

    assert (await client.job(job.job_id)).final_amount == 30_000
    vault = await vault_of(client)
    assert (vault.open_maximum, vault.final_total) == (0, 30_000)


async def test_asked_again_nothing_changes(world: World) -> None:
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(spec(**SHORT))
    await ask(client, job, 3)
    again = await ask(client, job, 3, more=0)
    less = await ask(client, job, 2, more=0)

    assert (again.max_amount, less.max_amount, less.max_duration_ms) == (180_000, 180_000, 3 * MINUTE_MS)
    assert node.read() == []


async def test_a_cap_that_is_too_small_changes_nothing(world: World) -> None:
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(spec(**SHORT))
    with pytest.raises(Conflict) as refused:
        await ask(client, job, 3, more=119_999)

    assert refused.value.code == "cap_stale"
    view = await client.job(job.job_id)
    assert (view.max_amount, view.max_duration_ms) == (60_000, MINUTE_MS)
    assert (await vault_of(client)).open_maximum == 60_000
    assert node.read() == []


async def test_a_vault_that_is_too_small_says_what_is_missing(world: World) -> None:
    client, node = await make_client(world, deposit=100_000), await join(world, price=PRICE)
    job = await client.submit(spec(**SHORT))
    with pytest.raises(Conflict) as refused:
        await ask(client, job, 3)

    assert (refused.value.code, refused.value.data["missing"]) == ("vault_underfunded", 80_000)
    assert node.read() == []


async def test_the_clients_own_max_cost_still_holds(world: World) -> None:
    client, node = await make_client(world), await join(world, price=PRICE)
    limits = {"max_duration": "60s", "max_cost": "0.07"}
    job = await client.submit(spec(**SHORT | {"limits": limits}))
    view = await ask(client, job, 3, more=10_000)

    assert (job.max_amount, view.max_amount, view.max_duration_ms) == (60_000, 70_000, 3 * MINUTE_MS)
    assert node.read() == []


async def test_who_cannot_be_extended_is_told_why(world: World) -> None:
    client, node, job = await running(world, checkpoint={"enabled": False})
    with pytest.raises(Conflict) as refused:
        await ask(client, job, 3)
    assert refused.value.code == "extend_needs_checkpoints"
    await client.cancel(job.job_id)
    with pytest.raises(Conflict) as refused:
        await ask(client, job, 3)
    assert refused.value.code == "job_cancelled"
    await node.finish(EndReason.CANCELLED, None)
    node.read()
    with pytest.raises(Conflict) as refused:
        await ask(client, job, 3)
    assert refused.value.code == "job_ended"
    with pytest.raises(NotFound):
        await ask(await make_client(world), job, 3)


async def test_what_is_measured_in_the_end_is_extended_only_while_it_is_queued(world: World) -> None:
    client, node = await make_client(world), await join(world, price=PRICE)
    job = await client.submit(metric_spec(world, **SHORT))
    assert (await ask(client, job, 2)).max_duration_ms == 2 * MINUTE_MS
    await match_pending(world.market)
    await node.accept_and_start()
    with pytest.raises(Conflict) as refused:
        await ask(client, await client.job(job.job_id), 3)
    assert refused.value.code == "extend_verified"


async def test_another_vault_does_not_pay(world: World) -> None:
    client, _, job = await running(world)
    other = await make_client(world)
    cap = other.signed_cap(job.spec, 10**6)
    request = ExtendRequest.model_validate({"max_duration": "3m", "cap": cap})
    with pytest.raises(Invalid) as refused:
        async with world.market.transaction() as unit:
            await extend(unit, client.account, JobId(job.job_id), request)
    assert refused.value.code == "cap_other_vault"
