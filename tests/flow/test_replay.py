"""Verification by replay: what is drawn after the report, what a difference costs, and that one flaw of the verifier punishes nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from sqlalchemy import select

from tests.support.actors import Client, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.replay import Distance, Segment
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.api import JobView
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
SAME, FAR = Distance(0.0, bit_equal=True), Distance(0.4)


@dataclass
class ScriptedReplayer:
    script: deque[Distance | EvaluationFailed] = field(default_factory=deque)
    seen: list[Segment] = field(default_factory=list)

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        del spec, model
        self.seen.append(segment)
        answer = self.script.popleft()
        if isinstance(answer, EvaluationFailed):
            raise answer
        return answer


@pytest.fixture
def replayer() -> ScriptedReplayer:
    return ScriptedReplayer()


@pytest.fixture
def market(world: World, replayer: ScriptedReplayer) -> World:
    return replace(world, market=replace(world.market, replayer=replayer))


def replay_spec(world: World, **changes: object) -> dict[str, object]:
    workspace = world.blobs.put(b"a catalogue workspace")
    world.catalogue.replays["rnn"] = workspace.digest
    members = {
        "workspace": workspace.model_dump(mode="json"),
        "verify": {"policy": "replay", "catalogue": "rnn"},
        "outputs": ["model.safetensors"],
        "checkpoint": {"enabled": True},
    }
    return spec(**members | changes)


async def reported(world: World) -> tuple[Client, Node, JobView]:
    node = await join(world, price=PRICE)
    client = await make_client(world)
    job = await client.submit(replay_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    for number in range(1, 4):
        world.advance(seconds=10)
        await node.checkpoint(f"step-{number:08d}")
    world.advance(seconds=10)
    await node.finish(outputs={"model.safetensors": b"weights"})
    node.read()
    return client, node, job


async def test_a_segment_that_comes_out_the_same_is_paid(market: World, replayer: ScriptedReplayer) -> None:
    client, node, job = await reported(market)
    replayer.script.append(SAME)
    assert await verify_pending(market.market) == 1
    node.read()

    view = await client.job(job.job_id)
    assert (view.state, view.final_amount) == (JobState.SUCCEEDED, 40_800)
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=market.market.public_key) == []
    verdict = receipt.receipt.verdict
    assert (verdict.policy, verdict.result, verdict.measured["distance"]) == ("replay", "passed", "0.000e+00")
    assert len(replayer.seen) == 1


async def test_a_segment_that_differs_three_times_is_not_paid_and_runs_elsewhere(
    market: World, replayer: ScriptedReplayer
) -> None:
    client, node, job = await reported(market)
    other = await join(market, price=PRICE)
    replayer.script.extend([FAR, FAR])
    assert await verify_pending(market.market) == 1
    node.read()

    (receipt,) = await client.receipts(job.job_id)
    assert (receipt.receipt.state, receipt.receipt.amount) == (LeaseState.REJECTED, 0)
    assert len(replayer.seen) == 2, "executed again before anybody is blamed"
    assert await match_pending(market.market) == 1
    await other.accept_and_start()
    await other.finish(outputs={"model.safetensors": b"weights"})
    replayer.script.append(SAME)
    assert await verify_pending(market.market) == 1
    other.read()
    assert (await client.job(job.job_id)).state == JobState.SUCCEEDED


async def test_one_odd_replay_of_three_blames_nobody(market: World, replayer: ScriptedReplayer) -> None:
    client, node, job = await reported(market)
    replayer.script.extend([FAR, SAME, SAME])
    assert await verify_pending(market.market) == 1
    node.read()
    assert (await client.job(job.job_id)).state == JobState.SUCCEEDED


async def test_segments_are_drawn_by_chance_and_none_before_the_report(
    market: World, replayer: ScriptedReplayer
) -> None:
    drawn = set()
    node, client = await join(market, price=PRICE), await make_client(market)
    for _ in range(9):  # its first ten leases are all audited
        await client.submit(replay_spec(market))
        await match_pending(market.market)
        await node.accept_and_start()
        for number in range(1, 3):
            market.advance(seconds=1)
            await node.checkpoint(f"step-{number:08d}")
        assert replayer.seen == []
        await node.finish(outputs={"model.safetensors": b"weights"})
        replayer.script.append(SAME)
        await verify_pending(market.market)
        drawn.add(replayer.seen.pop().number)
        node.read()
    assert len(drawn) > 1
    assert drawn <= {0, 1, 2}


async def test_whoever_asks_for_all_segments_gets_the_last_one_too(market: World, replayer: ScriptedReplayer) -> None:
    """The one that leads to the outputs."""
    node, client = await join(market, price=PRICE), await make_client(market)
    await client.submit(replay_spec(market, verify={"policy": "replay", "catalogue": "rnn", "segments": 3}))
    await match_pending(market.market)
    await node.accept_and_start()
    for number in (1, 2):
        market.advance(seconds=10)
        await node.checkpoint(f"step-{number:08d}")
    market.advance(seconds=10)
    await node.finish(outputs={"model.safetensors": b"weights"})
    replayer.script.extend([SAME, SAME, SAME])
    await verify_pending(market.market)
    assert sorted(segment.number for segment in replayer.seen) == [0, 1, 2]
    node.read()


async def test_a_verifier_that_cannot_judge_blames_nobody(market: World, replayer: ScriptedReplayer) -> None:
    client, node, job = await reported(market)
    for _ in range(market.market.policy.verify_attempts):
        replayer.script.append(EvaluationFailed("no sandbox"))
        await verify_pending(market.market)
        market.advance(ms=market.market.policy.verify_retry_ms)
    node.read()
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state) == (JobState.FAILED, LeaseState.INCONCLUSIVE)
    assert view.final_amount == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verify": {"policy": "replay", "catalogue": "unknown"}}, "catalogue_unknown"),
        ({"checkpoint": {"enabled": False}}, "checkpoint_not_enabled"),
        ({"command": ["python", "other.py"]}, "command_not_catalogue"),
        ({"env": {"PYTHONPATH": "/tmp"}}, "command_not_catalogue"),
        ({"workspace": None}, "workspace_not_catalogue"),
    ],
)
async def test_what_cannot_be_replayed_is_refused_at_submission(
    market: World, changes: dict[str, object], code: str
) -> None:
    await join(market, price=PRICE)
    client = await make_client(market)
    with pytest.raises(Invalid) as refused:
        await client.submit(replay_spec(market, **changes))
    assert refused.value.code == code


async def test_without_a_replayer_the_policy_is_refused(world: World) -> None:
    await join(world, price=PRICE)
    client = await make_client(world)
    with pytest.raises(Invalid) as refused:
        await client.submit(replay_spec(world))
    assert refused.value.code == "replay_unavailable"


async def test_a_lease_with_a_segment_that_may_be_beyond_us_is_looked_at_just_there_each_time(
    market: World, replayer: ScriptedReplayer
) -> None:
    """Who stores no checkpoint in between would be paid whenever no audit is drawn, and lose nothing by one that runs out of time."""
    node, client = await join(market, price=PRICE), await make_client(market)
    async with market.market.transaction() as unit:
        row = await node_row(unit, node.id)
        row.clean_leases, row.leases_kept = 100, 100
    for _ in range(6):  # drawn by chance they would be in one of a thousand cases
        await client.submit(replay_spec(market))
        await match_pending(market.market)
        await node.accept_and_start()
        for number, seconds in enumerate((10, 10, 300, 10)):
            market.advance(seconds=seconds)
            await node.heartbeat()
            await node.checkpoint(f"step-{number:08d}")
        await node.finish(outputs={"model.safetensors": b"weights"})
        replayer.script.extend([SAME, SAME])
        await verify_pending(market.market)
        node.read()
        assert 2 in [segment.number for segment in replayer.seen]
        replayer.seen.clear()
        replayer.script.clear()


async def test_a_replay_of_a_cpu_job_is_told_when_the_segment_should_be_over(
    market: World, replayer: ScriptedReplayer
) -> None:
    """By the word of the node itself: if it is not, the checkpoint has a made-up name, or the time is a lie."""
    _, node, _ = await reported(market)
    replayer.script.append(SAME)
    await verify_pending(market.market)
    node.read()
    (segment,) = replayer.seen
    assert segment.over_after_ms == 3 * 10_000 + 240_000


async def test_a_verdict_on_which_we_stumble_holds_up_no_other(market: World, replayer: ScriptedReplayer) -> None:
    client, node, first = await reported(market)
    node.held.clear()
    second = await client.submit(replay_spec(market, name="second"))
    await match_pending(market.market)
    await node.accept_and_start()
    await node.finish(outputs={"model.safetensors": b"weights"})
    replayer.script.append(SAME)  # for the second look: the first one finds the script empty
    stumbles = replayer.script
    replayer.script = deque()
    assert await verify_pending(market.market) == 0
    replayer.script = stumbles + deque([SAME])
    market.advance(ms=market.market.policy.verify_retry_ms)
    await node.heartbeat()
    assert await verify_pending(market.market) == 2
    for job in (first, second):
        assert (await client.job(job.job_id)).state is JobState.SUCCEEDED
    node.read()


class WaitingReplayer(ScriptedReplayer):
    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        self.began.set()
        await self.may_go_on.wait()
        return await super().replay(spec, segment, model)


async def test_nobody_else_executes_a_segment_that_takes_longer_than_a_claim(market: World) -> None:
    """A claim was five minutes and a replay takes up to fifteen: after five a second process began the same one, and counted a second attempt."""
    _, node, _ = await reported(market)
    replayer = WaitingReplayer()
    replayer.script.append(SAME)
    policy = market.market.policy.model_copy(update={"verify_claim_ms": 300})
    ours = replace(market.market, replayer=replayer, policy=policy)
    verdict = asyncio.create_task(verify_pending(ours))
    async with asyncio.timeout(60):
        await replayer.began.wait()
        for _ in range(2):
            market.advance(seconds=1)  # longer than a claim that nobody renews
            while not await claimed(market):  # noqa: ASYNC110 # it is the database that changes
                await asyncio.sleep(0.01)
            replayer.began.clear()
            assert await verify_pending(ours) == 0
            assert not replayer.began.is_set()
        replayer.may_go_on.set()
        assert await verdict == 1
    node.read()
    assert len(replayer.seen) == 1


async def claimed(market: World) -> bool:
    async with market.market.reading() as unit:
        (lease,) = await unit.session.scalars(select(LeaseRow))
        return (lease.verify_at_ms or 0) > unit.now_ms
