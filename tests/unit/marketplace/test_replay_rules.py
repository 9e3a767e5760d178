"""Which segments there are, and what replays of them come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.workload_runs import WORKLOADS
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.rules.replay import (
    LONGEST_MS,
    TOLERANCE,
    Answer,
    Ask,
    Distance,
    Segment,
    claimed_ms,
    is_outvoted,
    longest_replay_ms,
    next_step,
    next_step_of_planted,
    ours_from_ms,
    segments_of,
)
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import CheckpointRef
from torg_protocol.usage import VerdictSummary

SEGMENT = Segment(1, None, None)
SAME, NEAR, FAR, NONE = (
    Distance(0.0, bit_equal=True),
    Distance(1e-3),
    Distance(0.1),
    Distance(None, detail="unreadable"),
)


def ref(name: str) -> CheckpointRef:
    blob = BlobRef(digest=Digest("sha256:" + "0" * 64), size_bytes=1)
    return CheckpointRef(name=name, blob=blob, useful_ms=0, written_at_ms=0)


def test_segments_lead_from_where_the_lease_began_to_its_outputs() -> None:
    first, second = ref("a"), ref("b")
    assert [(s.start, s.end) for s in segments_of(None, [first, second])] == [
        (None, first),
        (first, second),
        (second, None),
    ]
    assert [(s.start, s.end) for s in segments_of(first, [])] == [(first, None)]


@pytest.mark.parametrize(
    ("found", "result"),
    [
        ([SAME], "passed"),
        ([NEAR], "passed"),
        ([FAR], Ask.OURSELVES),
        ([FAR, FAR], "failed"),
        ([NONE, FAR], "failed"),
        ([FAR, SAME], Ask.OURSELVES),
        ([FAR, SAME, SAME], "passed"),
        ([FAR, SAME, FAR], "failed"),
        ([Distance(TOLERANCE)], "passed"),
        ([Distance(TOLERANCE * 1.01), Distance(TOLERANCE * 1.01)], "failed"),
        ([Distance(float("nan")), Distance(float("nan"))], "failed"),
    ],
)
def test_two_of_three_of_our_own_replays_decide(found: list[Distance], result: str | Ask) -> None:
    assert said(next_step(SEGMENT, [Answer(distance, by_node=False) for distance in found])) == result


@pytest.mark.parametrize(
    ("nodes", "ours", "result", "outvoted"),
    [
        ("", "", Ask.NODE, ""),
        ("s", "", "passed", "."),
        ("f", "", Ask.NODE, ""),
        ("fs", "", Ask.OURSELVES, ""),  # nobody is blamed by nodes alone
        ("ff", "", Ask.OURSELVES, ""),
        ("fs", "s", "passed", "x."),  # who accuses falsely
        ("ff", "f", "failed", ".."),
        ("fs", "f", "failed", ".x"),  # who says "the same" of what is not
        ("ff", "s", "passed", "xx"),  # two in league
        ("f", "s", "passed", "x"),  # no further node was there
        ("f", "f", "failed", "."),
        ("", "fs", Ask.OURSELVES, ""),
    ],
)
def test_nodes_are_asked_first_and_blame_needs_our_own_replay(
    nodes: str, ours: str, result: str | Ask, outvoted: str
) -> None:
    found = [Answer(SAME if each == "s" else FAR, by_node=True) for each in nodes]
    found += [Answer(SAME if each == "s" else FAR, by_node=False) for each in ours]
    step = next_step(SEGMENT, found)
    assert said(step) == result
    if isinstance(step, VerdictSummary):
        assert "".join("x" if is_outvoted(each, step) else "." for each in found[: len(nodes)]) == outvoted
        assert not any(is_outvoted(each, step) for each in found[len(nodes) :])


@given(st.lists(st.booleans(), max_size=3), st.lists(st.booleans(), max_size=3))
def test_nobody_is_blamed_without_our_own_word(nodes: list[bool], ours: list[bool]) -> None:
    found = [Answer(SAME if good else FAR, by_node=True) for good in nodes]
    found += [Answer(SAME if good else FAR, by_node=False) for good in ours]
    step = next_step(SEGMENT, found)
    if isinstance(step, VerdictSummary):
        passed = step.result == "passed"
        assert passed or not all(ours)
        assert passed in ours or not any(is_outvoted(answer, step) for answer in found)


@pytest.mark.parametrize(
    ("nodes", "result"),
    [("", Ask.NODE), ("s", "passed"), ("f", Ask.NODE), ("fs", "passed"), ("ff", "inconclusive")],
)
def test_against_a_known_answer_one_more_node_confirms_before_anybody_is_blamed(nodes: str, result: str | Ask) -> None:
    step = next_step_of_planted(SEGMENT, [Answer(SAME if each == "s" else FAR, by_node=True) for each in nodes])
    assert said(step) == result


def test_what_a_node_may_take_grows_with_what_was_claimed() -> None:
    start, end = ref("a").model_copy(update={"useful_ms": 4_000}), ref("b").model_copy(update={"useful_ms": 9_000})
    assert claimed_ms(Segment(1, start, end), useful_ms=20_000) == 5_000
    assert claimed_ms(Segment(2, end, None), useful_ms=20_000) == 11_000
    assert claimed_ms(Segment(0, end, None), useful_ms=20_000) == 20_000, "another lease's useful time does not count"
    assert longest_replay_ms(10_000) - longest_replay_ms(5_000) == 3 * 5_000


def test_the_window_has_room_for_the_longest_replay_of_our_own_after_nodes_were_waited_for() -> None:
    """It was ten minutes, and one replay may take fifteen: no second try was left when the first one broke off."""
    window_ms = MarketPolicy().verification_window_s * 1000
    assert window_ms - ours_from_ms(window_ms, window_ms, 10**9) == LONGEST_MS
    assert ours_from_ms(window_ms, window_ms, 10**9) >= LONGEST_MS
    assert ours_from_ms(window_ms, window_ms, 0) == window_ms * 3 // 4
    assert 0 < ours_from_ms(10_000, 10_000, 10**9) < 10_000, "a short window is shared out, too"


def test_trainings_that_come_out_otherwise_on_another_cpu_cannot_be_replayed() -> None:
    """`cnn` could: a bias before a normalisation goes where the noise of its gradient leads, a quarter of the first layer's way, and an honest node would
    have lost its stake. rl: one action drawn otherwise, and all that follows is."""
    catalogue = FolderCatalogue(WORKLOADS)
    assert all(
        catalogue.replayable(name) for name in ("embeddings", "energy", "health", "linear", "rnn", "transformer")
    )
    assert not any(catalogue.replayable(name) for name in ("cnn", "gan", "rl", "distributed", "generate", "unknown"))


def said(step: VerdictSummary | Ask | None) -> str | Ask | None:
    return step.result if isinstance(step, VerdictSummary) else step
