"""A bucket of requests: what fills it, and what does not."""

from __future__ import annotations

import pytest

from torg_marketplace.rules.limits import quota_of, refilled, refusal


@pytest.mark.parametrize(
    ("tokens", "per_minute", "passed_s", "then"),
    [
        (0, 60, 1, 1),
        (0, 120, 1, 2),
        (5, 120, 10, 25),
        (59, 60, 30, 60),  # no more than a minute's worth
        (7, 60, -3600, 7),  # a clock that was set back takes nothing
    ],
)
def test_it_fills_at_the_rate_of_a_minutes_worth(tokens: float, per_minute: int, passed_s: float, then: float) -> None:
    assert refilled(tokens, per_minute, passed_s) == pytest.approx(then)


def test_who_waits_as_long_as_the_refusal_says_is_let_in() -> None:
    tokens, per_minute = 0.25, 7
    wait_s = refusal(tokens, per_minute).data["retry_after_s"]
    assert refilled(tokens, per_minute, wait_s) >= 1
    assert refilled(tokens, per_minute, wait_s - 1) < 1


def test_what_is_told_is_whole_and_never_too_much() -> None:
    quota = quota_of(3.9, 60)
    assert (quota.left, quota.full_in_s) == (3, 57)
    assert refilled(3.9, 60, quota.full_in_s) == 60
