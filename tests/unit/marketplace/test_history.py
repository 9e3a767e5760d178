"""Replaying a job's events finds a gap, a move that is not legal, and an end that the database does not have."""

from __future__ import annotations

from torg_marketplace.rules.history import Move, replayed

LIFE = [
    Move("job_1", None, "queued", 0),
    Move("job_1", "queued", "leased", 10),
    Move("lease_1", None, "granted", 10),
    Move("lease_1", "granted", "preparing", 12),
    Move("lease_1", "preparing", "lost", 50),
    Move("job_1", "leased", "queued", 50),
    Move("job_1", "queued", "cancelled", 60),
]
STORED = {"job_1": "cancelled", "lease_1": "lost"}


def test_a_whole_life_has_no_problems_and_says_how_long_each_state_lasted() -> None:
    timeline, problems = replayed(LIFE, STORED)
    assert problems == []
    assert [(item["state"], item["lasted_ms"]) for item in timeline if item["subject"] == "job_1"] == [
        ("queued", 10),
        ("leased", 40),
        ("queued", 10),
        ("cancelled", None),
    ]


def test_a_lost_event_a_wrong_move_and_another_end_are_named() -> None:
    assert replayed([*LIFE[:1], *LIFE[2:]], STORED)[1] == ["job_1 moved from leased to queued, and was queued"]
    wrong = [*LIFE[:5], Move("lease_1", "lost", "running", 55), *LIFE[5:]]
    assert "lease_1 moved from lost to running, which is no legal move" in replayed(wrong, STORED)[1]
    ends = replayed(LIFE, STORED | {"job_1": "succeeded"})[1]
    assert ends == ["job_1 is succeeded in the database, cancelled by its events"]
