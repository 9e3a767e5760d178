"""Evidence: listed by what it is about, judged again from what is kept, and gone when it is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.flow.test_replay_by_nodes import audited
from tests.flow.test_verify import reported
from tests.support.market import World
from tests.support.replays import EXECUTED, JUNK
from torg_marketplace.flow.evidence import list_evidence, replay_evidence, show_evidence
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.verify import verify_pending
from torg_protocol.errors import Conflict, NotFound

DAY_MS = 86_400_000


async def test_a_replayed_segment_is_listed_for_both_nodes_and_judged_again(world: World) -> None:
    trial = await audited(world)
    verifier = await trial.answer(EXECUTED)
    trial.read_all()
    market, client = trial.world.market, trial.client
    async with market.reading() as unit:
        found = [
            await list_evidence(unit, about=about, limit=10)
            for about in (None, trial.job_id, trial.worker.id, verifier.id, client.account)
        ]
        (item,) = found[0]
        shown = await show_evidence(unit, item["id"])
    assert found[1:] == [found[0]] * 3 + [[]], "a client's name is not one of its keys"
    assert (item["kind"], item["result"], item["node"]) == ("replay, audit", "passed", trial.worker.id)
    assert [answer["node_id"] for answer in shown["answers"]] == [verifier.id]

    again = await replay_evidence(market, item["id"])
    assert (again.then, again.same) == ({verifier.id: True}, True)
    check = shown["check"]
    trial.replayer.lies = {check["end"]["blob"]["digest"] if check["end"] else check["model"]}
    assert (await replay_evidence(market, item["id"])).now == {verifier.id: False}, "what the files say counts"


async def test_a_dispute_is_judged_again_with_our_own_replay(world: World) -> None:
    trial = await audited(world)
    accuser = await trial.answer(JUNK)
    honest = await trial.answer(EXECUTED)
    trial.read_all()
    async with trial.world.market.reading() as unit:
        (item,) = await list_evidence(unit, about=None, limit=10)
    again = await replay_evidence(trial.world.market, item["id"])
    assert again.now == {accuser.id: False, honest.id: True, "ourselves": True}
    assert again.same


async def test_what_we_measured_is_measured_again_with_the_same_seed(world: World) -> None:
    _, node, _ = await reported(world)
    world.evaluator.will_measure(accuracy="0.97")
    await verify_pending(world.market)
    node.read()
    async with world.market.reading() as unit:
        (item,) = await list_evidence(unit, about=node.id, limit=10)
    world.evaluator.will_measure(accuracy="0.97")
    assert (await replay_evidence(world.market, item["id"])).same
    world.evaluator.will_measure(accuracy="0.96")
    assert not (await replay_evidence(world.market, item["id"])).same
    assert len(set(world.evaluator.seeds)) == 1


async def test_files_of_what_was_looked_at_are_kept_longer_and_then_gone(world: World) -> None:
    policy = world.market.policy.model_copy(update={"keep_blobs_ms": DAY_MS, "keep_evidence_ms": 30 * DAY_MS})
    world = replace(world, market=replace(world.market, policy=policy))
    _, node, _ = await reported(world)
    world.evaluator.will_measure(accuracy="0.97")
    await verify_pending(world.market)
    node.read()
    async with world.market.reading() as unit:
        (item,) = await list_evidence(unit, about=None, limit=10)
    world.advance(ms=3 * DAY_MS)
    await collect_garbage(world.market)
    world.evaluator.will_measure(accuracy="0.97")
    assert (await replay_evidence(world.market, item["id"])).same
    world.advance(ms=30 * DAY_MS)
    await collect_garbage(world.market)
    with pytest.raises(Conflict) as gone:
        await replay_evidence(world.market, item["id"])
    assert gone.value.code == "evidence_gone"


@pytest.mark.parametrize("evidence_id", ["check_no", "lease_no", "proof_no"])
async def test_what_there_is_not(world: World, evidence_id: str) -> None:
    async with world.market.reading() as unit:
        with pytest.raises(NotFound) as unknown:
            await show_evidence(unit, evidence_id)
        assert unknown.value.code == "evidence_unknown"
        assert await list_evidence(unit, about=evidence_id, limit=10) == []
    with pytest.raises(NotFound):
        await replay_evidence(world.market, evidence_id)
