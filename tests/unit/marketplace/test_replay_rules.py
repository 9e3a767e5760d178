"""Which segments there are, and what replays of them come to."""

from __future__ import annotations

import pytest

from torg_marketplace.rules.replay import (
    TOLERANCE,
    Distance,
    Segment,
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
