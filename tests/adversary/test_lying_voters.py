"""Replicas that lie: alone they lose, in league they win as often as two of them are drawn. Seeds are fixed."""

from __future__ import annotations

import pytest

from tests.adversary.voters import quorums

JOBS = 2_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("replicas", [3, 5])
def test_who_lies_alone_never_wins_and_no_honest_one_fails(share: float, seed: int, replicas: int) -> None:
    tally = quorums(seed, JOBS, liars=share, in_league=False, replicas=replicas)
    assert tally.results["wrong"] == 0
    assert tally.honest_failed == 0
    assert tally.liars_failed > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_two_in_league_of_three_win_as_often_as_both_are_drawn(share: float, seed: int) -> None:
    tally = quorums(seed, JOBS, liars=share, in_league=True)
    assert tally.results["wrong"] / JOBS == pytest.approx(share**2 * (3 - 2 * share), abs=0.03)
    assert tally.honest_failed / JOBS == pytest.approx(2 * share**2 * (1 - share), abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_more_replicas_are_harder_to_win(seed: int) -> None:
    three, five = (quorums(seed, JOBS, liars=0.3, in_league=True, replicas=replicas) for replicas in (3, 5))
    assert five.results["wrong"] < 0.9 * three.results["wrong"]
