"""The operator suspends nodes, takes it back, and looks things up."""

from __future__ import annotations

import pytest
from sqlalchemy import delete

from tests.support.actors import join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.bans import ban, lift
from torg_marketplace.flow.judge_proof import lift_ban
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import every_node, inspect_anything, replay_events, resume_node, suspend_node
from torg_marketplace.flow.reconcile import fee_payer_warning, watch_fee_payer
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.suspension import suspend
from torg_marketplace.metrics import MarketCollector
from torg_marketplace.storage.models import JobRow, NodeEventRow
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import NodeId
from torg_protocol.messages import Granted, Stop
from torg_protocol.states import JobState, LeaseState, NodeState


async def test_a_suspended_node_gets_no_lease_until_it_is_resumed(world: World) -> None:
    node, client = await join(world), await make_client(world)
    async with world.market.transaction() as unit:
        first = await suspend_node(unit, node.id, because="smoke was seen", stop=False)
    world.advance(seconds=60)
    await node.heartbeat()
    async with world.market.transaction() as unit:  # safe to repeat
        again = await suspend_node(unit, node.id, because="fire was seen", stop=False)
    assert again["suspensions"] == first["suspensions"]
    assert [(each["by"], each["because"]) for each in first["suspensions"]] == [("operator", "smoke was seen")]
    assert "note" not in first
    for word in ("nothing changed", "smoke was seen", "node-resume", "UTC by the operator"):
        assert word in again["note"]
    other = await join(world, price=2_000_000)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    other.expect(Granted)
    await node.heartbeat()  # nor does it come back by itself
    async with world.market.transaction() as unit:
        assert (await resume_node(unit, node.id, because="it was steam"))["state"] == NodeState.ACTIVE
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    node.expect(Granted)
    async with world.market.reading() as unit:
        known = await inspect_anything(unit, node.id)
        of_job = await inspect_anything(unit, job.job_id)
    details = [event["data"].get("detail") for event in known["events"]]
    assert "by the operator: smoke was seen" in details
    assert "by the operator: it was steam" in details
    assert of_job["job"]["state"] == JobState.LEASED
    assert [lease["node_id"] for lease in of_job["leases"]] == [other.id]


async def test_a_persons_decision_is_not_lifted_as_if_a_proof_had_failed(world: World) -> None:
    node = await join(world)
    async with world.market.transaction() as unit:
        await ban(unit, "node", node.id, because="scans others")
    with pytest.raises(Conflict) as refused:
        await lift_ban(world.market, node.id)
    assert refused.value.code == "node_suspended"
    async with world.market.reading() as unit:
        assert (await node_row(unit, node.id)).state == NodeState.SUSPENDED


async def test_nodes_that_nobody_is_offered_are_listed_too(world: World) -> None:
    node, other, client = await join(world), await join(world, price=2_000_000), await make_client(world)
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    node.expect(Granted)
    async with world.market.transaction() as unit:
        await suspend_node(unit, other.id, because="smoke was seen", stop=False)
    async with world.market.reading() as unit:
        listed = {row["node"]: row for row in await every_node(unit)}
    assert {key: (row["state"], row["live_leases"]) for key, row in listed.items()} == {
        node.id: (NodeState.ACTIVE, 1),
        other.id: (NodeState.SUSPENDED, 0),
    }
    async with world.market.transaction() as unit:
        with pytest.raises(NotFound, match="no such node here") as unknown:
            await suspend_node(unit, NodeId(node.id[:8]), because="as offers show it", stop=False)
    assert "torg-marketplace nodes" in str(unknown.value.hint)


async def test_its_leases_end_with_a_checkpoint_when_they_are_to_stop(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    async with world.market.transaction() as unit:
        answer = await suspend_node(unit, node.id, because="maintenance", stop=True)
    node.expect(Stop)
    async with world.market.reading() as unit:
        lease = await inspect_anything(unit, answer["leases"][0])
    assert (lease["lease"]["state"], lease["lease"]["stop_reason"]) == (LeaseState.STOPPING, "drained")
    assert [said["event"]["body"]["kind"] for said in lease["said"]] == ["started", "accepted"]
    assert (await client.job(job.job_id)).state is JobState.LEASED


async def test_what_cannot_be_done_says_why(world: World) -> None:
    node = await join(world)
    async with world.market.transaction() as unit:
        with pytest.raises(Conflict) as refused:
            await resume_node(unit, node.id, because="x")
        assert refused.value.code == "node_not_suspended"
        with pytest.raises(Invalid) as wordless:
            await suspend_node(unit, node.id, because=" ", stop=False)
        assert wordless.value.code == "because_missing"
        with pytest.raises(NotFound) as unknown:
            await inspect_anything(unit, "job_nobody")
        assert unknown.value.code == "nothing_known"
        with pytest.raises(NotFound) as nobody:
            await suspend_node(unit, NodeId("nobody"), because="x", stop=False)
        assert nobody.value.code == "node_unknown"
        await suspend(unit, await node_row(unit, node.id), "proof", "wrong digests")
        with pytest.raises(Conflict) as banned:
            await resume_node(unit, node.id, because="x")
        assert banned.value.code == "node_banned"
        assert "proof lift" in str(banned.value.hint)


async def test_each_cause_is_taken_back_by_itself_and_nothing_else_with_it(world: World) -> None:
    node = await join(world)

    async def state() -> str:
        async with world.market.reading() as unit:
            return (await node_row(unit, node.id)).state

    async with world.market.transaction() as unit:
        row = await node_row(unit, node.id)
        await suspend(unit, row, "proof", "wrong digests")
        await ban(unit, "node", node.id, because="scans others")
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)
        row.proof = {"strikes": 3}
    world.advance(seconds=60)
    stays = await lift_ban(world.market, node.id)
    assert stays is not None
    assert "scans others" in stays
    assert "smoke was seen" in stays
    assert "unban node" in stays
    async with world.market.transaction() as unit:
        assert (await node_row(unit, node.id)).proof == {}
        lifted = await lift(unit, "node", node.id, because="it was another one")
    assert "smoke was seen" in lifted["note"]
    assert "scans others" not in lifted["note"]
    assert await state() == NodeState.SUSPENDED
    async with world.market.transaction() as unit:
        resumed = await resume_node(unit, node.id, because="it was steam")
    assert "note" not in resumed
    assert await state() == NodeState.ACTIVE


async def test_a_decision_outlives_what_is_kept_of_its_events(world: World) -> None:
    """A node that comes and goes has a hundred newer events soon, and retention removes old ones."""
    node = await join(world)
    async with world.market.transaction() as unit:
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)
    async with world.market.transaction() as unit:
        await unit.session.execute(delete(NodeEventRow))
    with pytest.raises(Conflict) as refused:
        await lift_ban(world.market, node.id)
    assert refused.value.code == "node_suspended"
    async with world.market.transaction() as unit:
        assert (await resume_node(unit, node.id, because="it was steam"))["state"] == NodeState.ACTIVE


async def test_a_jobs_events_give_its_life_again(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=60)
    await node.finish()
    node.read()
    async with world.market.reading() as unit:
        replayed = await replay_events(unit, job.job_id)
    assert replayed["problems"] == []
    states = [item["state"] for item in replayed["timeline"] if item["subject"] == job.job_id]
    assert states == ["queued", "leased", "verifying", "succeeded"]
    assert 60_000 in [item["lasted_ms"] for item in replayed["timeline"]]
    async with world.market.transaction() as unit:
        (await unit.session.get_one(JobRow, job.job_id)).state = JobState.FAILED  # by somebody's hand
    async with world.market.reading() as unit:
        problems = (await replay_events(unit, job.job_id))["problems"]
        with pytest.raises(NotFound):
            await replay_events(unit, "job_none")
    assert problems == [f"{job.job_id} is failed in the database, succeeded by its events"]


async def test_a_poor_fee_payer_is_said_by_log_metric_and_readiness(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def metrics() -> dict[str, float]:
        collector = MarketCollector(lambda: 0, lambda: world.market.vitals.fee_payer_lamports)
        return {family.name: family.samples[0].value for family in collector.collect() if family.samples}

    assert "torg_fee_payer_lamports" not in metrics()
    assert fee_payer_warning(world.market) is None
    world.chain.fee_payer_lamports = 5
    await watch_fee_payer(world.market)
    assert metrics()["torg_fee_payer_lamports"] == 5
    assert "holds 5 lamports" in (fee_payer_warning(world.market) or "")
    assert [record.levelname for record in caplog.records if "fee payer" in record.message] == ["ERROR"]
    world.chain.fee_payer_lamports = 10**9
    await watch_fee_payer(world.market)
    assert fee_payer_warning(world.market) is None
