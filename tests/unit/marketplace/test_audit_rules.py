"""How often is audited, and what is at stake: cheating never pays on average, and no money stands behind two leases."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.audit import (
    COST_PERMILLE,
    FIRST_LEASES_ALL,
    LEAST_PERMILLE,
    MOST_STAKE_REWARDS,
    Standing,
    audit_permille,
    name_worth,
    stake_behind,
)
from torg_protocol.audits import Dice, is_drawn

AMOUNTS = st.integers(0, 10**12)
STANDINGS = st.builds(Standing, st.integers(0, 1000), AMOUNTS, st.integers(0, 1000))


@given(standing=STANDINGS, reward=st.integers(1, 10**12))
def test_cheating_never_pays_at_the_audit_rate(standing: Standing, reward: int) -> None:
    permille = audit_permille(standing, reward)
    at_risk = reward + standing.stake + name_worth(standing, reward)
    assert LEAST_PERMILLE <= permille <= 1000
    assert permille * at_risk >= COST_PERMILLE * reward, "p (R + S + V) >= C"
    assert 0 <= name_worth(standing, reward) <= 2 * reward
    if standing.clean_leases < FIRST_LEASES_ALL:
        assert permille == 1000


def test_the_rates_that_are_published() -> None:
    rates = {
        (stake, name): audit_permille(Standing(100, stake * 1000, name), 1000)
        for stake in (0, 1, 5, 15)
        for name in (0, 1000)
    }
    assert rates == {
        (0, 0): 800,
        (0, 1000): 267,
        (1, 0): 400,
        (1, 1000): 200,
        (5, 0): 134,
        (5, 1000): 100,
        (15, 0): 50,
        (15, 1000): 50,
    }


@given(
    free=AMOUNTS,
    rewards=st.lists(st.integers(0, 10**9), max_size=12),
    waiting=st.integers(0, 5),
)
def test_no_money_stands_behind_two_leases(free: int, rewards: list[int], waiting: int) -> None:
    """In whatever order verdicts come, with some leases still running: what was kept aside is not free for the next."""
    left = free
    for number, reward in enumerate(rewards):
        behind = stake_behind(left, waiting + len(rewards) - number, reward)
        assert 0 <= behind <= min(left, MOST_STAKE_REWARDS * reward)
        left -= behind
    assert left >= 0


def test_leases_that_are_not_decided_share_what_is_free() -> None:
    """So that whoever cheats on all at once has something to lose for each."""
    assert [stake_behind(100, undecided, 1_000) for undecided in (1, 3, 4)] == [100, 33, 25]
    assert stake_behind(10**9, 4, 1_000) == MOST_STAKE_REWARDS * 1_000


def test_the_gain_of_cheating_is_negative_for_every_amount_of_it() -> None:
    """Monte Carlo of what a cheat on a share of 30 segments earns over honest work, one segment looked at."""
    chance, reward, stake, segments = random.Random(1), 1.0, 10.0, 30
    permille = audit_permille(Standing(FIRST_LEASES_ALL, int(stake * 1000), 0), int(reward * 1000))
    for cheated in (1, 8, 15, 30):
        total = 0.0
        for _ in range(20_000):
            audited = chance.random() < permille / 1000
            caught = audited and chance.randrange(segments) < cheated
            saved = 0.8 * reward * cheated / segments
            total += (-stake - reward if caught else 0.0) + saved
        assert total / 20_000 < 0.05 * reward


def test_draws_are_even_and_the_same_for_everybody() -> None:
    drawn = [is_drawn(f"signature {number}", 250) for number in range(4_000)]
    assert 0.22 < sum(drawn) / 4_000 < 0.28
    assert all(is_drawn(f"{number}", 1000) for number in range(50))
    counts = [0] * 8
    for number in range(2_000):
        for chosen in Dice(f"{number}").choose(8, 2):
            counts[chosen] += 1
    assert all(400 < count < 600 for count in counts)
    assert Dice("a").choose(5, 9) == [0, 1, 2, 3, 4]
    assert Dice("a").choose(1000, 3) == Dice("a").choose(1000, 3)
