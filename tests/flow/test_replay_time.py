"""A replay that does not come to its end: whose slowness it is. An honest node is never blamed for the marketplace's own."""

from __future__ import annotations

import pytest

from tests.flow.test_replay_by_nodes import Trial, audited, reputation
from tests.support.actors import Node, let_pass
from tests.support.market import World
from tests.support.replays import EXECUTED
from torg_marketplace.rules.replay import longest_replay_ms
from torg_protocol.states import EndReason, JobState, LeaseState

CLAIMED_MS = 10_000  # of each segment of the trial
OURS_FIRST = CLAIMED_MS + 1  # what takes less is not worth a lease: we execute it


async def time_is_over_at(node: Node, trial: Trial, after_ms: int) -> None:
    """The node takes the segment, and says so long after its start that its time was over."""
    await node.accept_and_start()
    await let_pass(trial.world, seconds=after_ms // 1000, nodes=(trial.worker, *trial.verifiers))
    await node.finish(EndReason.MAX_DURATION, exit_code=None)
    node.read()


async def to_the_end(trial: Trial) -> None:
    for _ in range(trial.world.market.policy.verify_attempts + 1):
        await let_pass(trial.world, seconds=10, nodes=(trial.worker, *trial.verifiers))
        await trial.verify()
    trial.read_all()


@pytest.mark.parametrize("verifiers", [0, 2])
async def test_that_we_are_slow_blames_nobody(world: World, verifiers: int) -> None:
    """Three times what the node claims, and four minutes: an idle machine with slow cores, or one that was frozen, took its pay, name and stake."""
    trial = await audited(world, slow=True, verifiers=verifiers, credit=False)
    await to_the_end(trial)
    assert trial.replayer.executed, "we were at it"
    assert await trial.state() == (JobState.FAILED, LeaseState.INCONCLUSIVE)
    assert await reputation(trial, trial.worker) == (1, 0)


async def test_what_is_beyond_us_is_no_news_to_a_node_that_comes_to_the_end(world: World) -> None:
    """It was not asked, as the segment looked too short to be worth a lease."""
    trial = await audited(world, slow=True, here_below_ms=OURS_FIRST)
    assert len(trial.replayer.executed) == 1
    await trial.answer(EXECUTED)
    trial.read_all()
    assert await trial.state() == (JobState.SUCCEEDED, LeaseState.VERIFIED)


@pytest.mark.parametrize("here_below_ms", [0, OURS_FIRST], ids=["a node first", "ours first"])
async def test_who_claims_less_time_than_it_takes_is_found_by_another_owners_clock_and_ours(
    world: World, here_below_ms: int
) -> None:
    trial = await audited(world, slow=True, here_below_ms=here_below_ms)
    before = len(trial.replayer.executed)
    await time_is_over_at(await trial.asked(), trial, longest_replay_ms(CLAIMED_MS))
    await to_the_end(trial)
    assert len(trial.replayer.executed) - before == 2, "and no other node is asked to run into the same"
    assert (await trial.state())[1] == LeaseState.REJECTED
    assert await reputation(trial, trial.worker) == (1, 1)


async def test_that_its_time_was_over_is_no_nodes_word_to_give(world: World) -> None:
    trial = await audited(world, slow=True, verifiers=1)
    await time_is_over_at(await trial.asked(), trial, longest_replay_ms(CLAIMED_MS) // 2)
    await to_the_end(trial)
    assert await trial.state() == (JobState.FAILED, LeaseState.INCONCLUSIVE)
    assert await reputation(trial, trial.worker) == (1, 0)
