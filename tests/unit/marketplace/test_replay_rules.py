"""Which segments there are, how often they are looked at, and what replays of them come to."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.replay import (
    FIRST_LEASES_ALL,
    LEAST_PERMILLE,
    TOLERANCE,
    Distance,
    Segment,
    audit_permille,
    judge_replays,
    segments_of,
)
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import CheckpointRef

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
        ([FAR], None),
        ([FAR, FAR], "failed"),
        ([NONE, FAR], "failed"),
        ([FAR, SAME], None),
        ([FAR, SAME, SAME], "passed"),
        ([FAR, SAME, FAR], "failed"),
        ([Distance(TOLERANCE)], "passed"),
        ([Distance(TOLERANCE * 1.01), Distance(TOLERANCE * 1.01)], "failed"),
        ([Distance(float("nan")), Distance(float("nan"))], "failed"),
    ],
)
def test_two_of_three_replays_decide(found: list[Distance], result: str | None) -> None:
    verdict = judge_replays(SEGMENT, found)
    assert (verdict.result if verdict else None) == result


@given(stake=st.integers(0, 10**12), reward=st.integers(1, 10**12), kept=st.integers(0, 1000))
def test_cheating_never_pays_at_the_audit_rate(stake: int, reward: int, kept: int) -> None:
    permille = audit_permille(kept, stake, reward)
    assert LEAST_PERMILLE <= permille <= 1000
    assert permille * (reward + stake) >= 800 * reward, "p (R + S) >= C"
    if kept < FIRST_LEASES_ALL:
        assert permille == 1000


def test_the_gain_of_cheating_is_negative_for_every_amount_of_it() -> None:
    """Monte Carlo of what a cheat on a share of 30 segments earns over honest work, one segment looked at."""
    chance, reward, stake, segments = random.Random(1), 1.0, 10.0, 30
    permille = audit_permille(FIRST_LEASES_ALL, int(stake * 1000), int(reward * 1000))
    for cheated in (1, 8, 15, 30):
        total = 0.0
        for _ in range(20_000):
            audited = chance.random() < permille / 1000
            caught = audited and chance.randrange(segments) < cheated
            saved = 0.8 * reward * cheated / segments
            total += (-stake - reward if caught else 0.0) + saved
        assert total / 20_000 < 0.05 * reward
