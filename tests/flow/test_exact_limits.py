"""The last unit, the last second and the wrong generation: what is just beyond a limit is refused, what is at it is not."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from tests.support.actors import TUSD, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.blobs import may_read_blob
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import job_row, leases_of_job
from torg_marketplace.flow.settlement_plan import make_plan
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.vaults import vault_row
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.storage.money_models import CapRow, PayoutRow
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import Digest, JobId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.messages import Abandon, Granted, Released, Stop
from torg_protocol.states import EndReason, JobState, LeaseState

PLAIN = load_job_spec(spec())


async def running(world: World) -> tuple[Node, JobId]:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    return node, job.job_id


async def test_a_cap_that_is_one_unit_too_low_does_not_bind_and_an_exact_one_does(world: World) -> None:
    await join(world, price=TUSD)
    client = await make_client(world)
    with pytest.raises(Conflict) as short:
        await client.submit(spec(), cap=client.signed_cap(PLAIN, TUSD - 1))
    assert short.value.code == "cap_stale"
    client.cap = 0
    job = await client.submit(spec(), cap=client.signed_cap(PLAIN, TUSD))
    assert (job.state, job.max_amount) == (JobState.QUEUED, TUSD)


@pytest.mark.parametrize(("deposit", "code"), [(TUSD - 1, "vault_underfunded"), (TUSD, None)])
async def test_a_vault_holds_what_a_job_may_cost_to_the_unit(world: World, deposit: int, code: str | None) -> None:
    await join(world, price=TUSD)
    client = await make_client(world, deposit=deposit)
    if code is None:
        assert (await client.submit(spec())).state is JobState.QUEUED
        return
    with pytest.raises(Conflict) as refused:
        await client.submit(spec())
    assert (refused.value.code, refused.value.data["missing"]) == (code, 1)


async def test_a_cap_lives_until_the_last_second_in_which_the_job_may_be_settled(world: World) -> None:
    await join(world, price=TUSD)
    client = await make_client(world)
    policy = world.market.policy
    needed_s = policy.verification_window_s + policy.settlement_max_age_ms // 1000
    with pytest.raises(Conflict) as short:
        await client.submit(spec(), cap=client.signed_cap(PLAIN, TUSD, margin_s=needed_s - 1))
    assert short.value.code == "cap_expires_too_soon"
    client.cap = 0
    job = await client.submit(spec(), cap=client.signed_cap(PLAIN, TUSD, margin_s=needed_s))
    assert job.state is JobState.QUEUED


def test_a_cap_outlives_every_replica_of_a_quorum() -> None:
    quorum = load_job_spec(spec(outputs=["a"], verify={"policy": "quorum", "replicas": 5}))
    attempt_ms = PLAIN.limits.max_duration + PLAIN.lease_grace
    further_ms = latest_lease_end_ms(quorum, 0) - latest_lease_end_ms(PLAIN, 0)
    assert further_ms == 4 * (attempt_ms + PLAIN.limits.queue_timeout)


async def test_a_new_signer_counts_from_its_second_on(world: World) -> None:
    await join(world, price=TUSD)
    client, other = await make_client(world), await make_client(world)
    at_s = world.clock.now_ms() // 1000 + 60
    async with world.market.transaction() as unit:
        row = await vault_row(unit, client.vault)
        row.next_signer, row.next_signer_at_s = str(other.key.pubkey()), at_s
    world.advance(ms=at_s * 1000 - world.clock.now_ms() - 1)
    assert (await client.submit(spec())).state is JobState.QUEUED
    world.advance(ms=1)
    with pytest.raises(Invalid) as refused:
        await client.submit(spec())
    assert refused.value.code == "cap_signature_invalid"


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_lease_under_another_fence_is_nobodys(world: World, off: int) -> None:
    """In a heartbeat it is dropped, and the true one goes on; in a hello the true one is over: its node does not have it."""
    node, job_id = await running(world)
    truth = node.lease.grant
    node.lease.grant = truth.model_copy(update={"fence": truth.fence + off})
    held = dict(node.held)
    await node.heartbeat()
    assert node.expect(Abandon).lease_id == truth.lease_id
    node.held = held
    (directive,) = (await node.connect()).leases
    assert directive.directive == "abandon"
    node.read()
    async with world.market.reading() as unit:
        (lease,) = await leases_of_job(unit, job_id)
    assert (lease.state, lease.reason) == (LeaseState.REVOKED, EndReason.STALE)


async def test_who_lost_a_job_does_not_get_it_again(world: World) -> None:
    node = await join(world)
    client = await make_client(world)
    job = await client.submit(spec(lease_grace="60s"))
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    await node.ok(Released(reason=EndReason.HOST_PROTECTION))
    node.read()
    assert (await client.job(job.job_id)).state is JobState.QUEUED
    await let_pass(world, seconds=60, nodes=(node,))
    assert await match_pending(world.market) == 0


async def test_blobs_are_read_by_who_they_concern_and_as_long_as_they_do(world: World) -> None:
    node = await join(world)
    client, stranger = await make_client(world), await make_client(world)
    blob = world.blobs.put(b"workspace")
    other = await join(world, price=50 * TUSD)
    await stranger.submit(spec(excluded_nodes=[node.id]))
    await client.submit(spec(workspace=blob.model_dump(mode="json")))

    async def readers() -> list[bool]:
        async with world.market.reading() as unit:
            parties = (client.account, stranger.account, node.id, other.id)
            return [await may_read_blob(unit, party, Digest(blob.digest)) for party in parties]

    assert await readers() == [True, False, False, False]
    assert await match_pending(world.market) == 2
    assert await readers() == [True, False, True, False]
    other.expect(Granted)
    await node.accept_and_start()
    await node.finish()
    node.read()
    assert await readers() == [True, False, False, False]


async def test_a_stop_is_repeated_until_the_node_stops(world: World) -> None:
    node, job_id = await running(world)
    async with world.market.transaction() as unit:
        (lease,) = await leases_of_job(unit, job_id)
        await stop_lease(unit, lease, await job_row(unit, job_id), EndReason.CANCELLED)
    world.links.take_all(node.id)  # lost on the way
    await node.heartbeat()
    assert node.expect(Stop).reason is EndReason.CANCELLED
    await node.heartbeat()  # it stops now
    assert node.read() == []


@pytest.mark.parametrize("short_by", [0, 1])
async def test_a_capture_pays_what_the_valid_cap_covers_and_leaves_the_rest(world: World, short_by: int) -> None:
    """The highest cap has expired, and the one that lives on covers less."""
    node = await join(world, price=TUSD)
    client = await make_client(world)
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    world.advance(seconds=60)
    await node.finish()
    node.read()
    async with world.market.transaction() as unit:
        waiting = {row.payout_address: row.amount for row in await unit.session.scalars(select(PayoutRow))}
        await unit.session.execute(update(CapRow).values(cap=sum(waiting.values()) - short_by))
        plan = await make_plan(unit, client.vault)
    assert plan is not None
    covered = sum(waiting.values()) - short_by
    assert 0 < plan.batch.amount <= covered
    assert (plan.batch.amount == covered) == (short_by == 0)
