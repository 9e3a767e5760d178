"""Nodes that do not train as they were asked, caught by one replayed segment; honest drift between kernels is not punished. Seeds are fixed."""

from __future__ import annotations

import random
from math import comb

import pytest

from tests.adversary.trainings import SEGMENTS, SPOILS, Way, distances
from torg_marketplace.rules.audit import Standing, audit_permille
from torg_marketplace.rules.replay import TOLERANCE
from torg_protocol.audits import PERMILLE, Dice, is_drawn

LOOKED_AT = [1, 4, 7]
REWARD = 1_000_000


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("lower precision", Way(bf16=True)),
        ("one step of twenty skipped", Way(skipped=1)),
        ("five steps of twenty skipped", Way(skipped=5)),
        ("another learning rate", Way(rate=1.8e-3)),
        ("copied checkpoint", Way(copies=True)),
        ("made-up weights", Way(noise=0.02)),
    ],
)
def test_each_way_of_lying_is_beyond_the_tolerance_in_every_segment(name: str, way: Way) -> None:
    found = distances(way, LOOKED_AT)
    assert [item for item in found if item.passes] == [], name
    assert all(item.value is not None and item.value > 2 * TOLERANCE for item in found), found


@pytest.mark.parametrize("spoils", SPOILS)
def test_what_is_not_what_it_came_to_is_found_wherever_in_the_checkpoint_it_is(spoils: str) -> None:
    """Only weights were compared: who handed over an optimizer that begins from nothing passed, and the next node's honest work came out otherwise."""
    found = distances(Way(spoils=spoils), LOOKED_AT)
    assert [item for item in found if item.passes] == []
    assert all(item.value is not None and item.value > 2 * TOLERANCE and item.detail for item in found), found


@pytest.mark.parametrize("way", [Way(), Way(threads=2), Way(mkldnn=False)])
def test_honest_drift_is_within_the_tolerance_in_every_segment(way: Way) -> None:
    found = distances(way, LOOKED_AT[: 1 if way.threads > 1 else None])  # threads wait for each other on a busy machine
    assert [item for item in found if not item.passes] == [], found
    assert all(item.bit_equal for item in found) or way != Way()


@pytest.mark.parametrize(
    ("cheated", "segments", "least"), [(1.0, 1, 1.0), (0.5, 1, 0.45), (0.5, 3, 0.82), (0.25, 8, 0.87)]
)
def test_the_chance_of_being_caught_is_that_of_drawing_a_bad_segment(
    cheated: float, segments: int, least: float
) -> None:
    """Given that each bad segment is recognised (above): 1 - (1 - c)^m, without replacement a little more."""
    chance = random.Random(5)
    caught = 0
    for _ in range(2_000):
        bad = set(chance.sample(range(SEGMENTS), round(cheated * SEGMENTS)))
        caught += bool(bad & set(chance.sample(range(SEGMENTS), segments)))
    assert caught / 2_000 >= least


@pytest.mark.parametrize(
    ("clean_leases", "stake", "cheated", "segments"),
    [(0, 0, 0.25, 1), (0, 0, 1.0, 1), (100, 0, 1.0, 1), (100, 0, 0.5, 2), (100, 15 * REWARD, 1.0, 1)],
)
def test_a_liar_is_found_at_its_first_attempt_as_often_as_the_rule_says(
    clean_leases: int, stake: int, cheated: float, segments: int
) -> None:
    """By the draw of the marketplace, lease for lease, and real distances of what was drawn: p (1 - (1 - c)^m), p by the published rule."""
    recognised = [not item.passes for item in distances(Way(skipped=1), LOOKED_AT)]
    assert all(recognised)
    standing = Standing(stake=stake, clean_leases=clean_leases, reputation_permille=1000)
    permille, leases, found = audit_permille(standing, REWARD), 4_000, 0
    bad = set(random.Random(3).sample(range(SEGMENTS), round(cheated * SEGMENTS)))
    for number in range(leases):
        signature = f"lease {number}"
        dice = Dice(signature)
        audited = dice.below(PERMILLE) < permille
        assert audited is is_drawn(signature, permille)
        found += audited and bool(bad & set(dice.choose(SEGMENTS, segments)))
    missed = comb(SEGMENTS - len(bad), segments) / comb(SEGMENTS, segments)
    expected = permille / PERMILLE * (1 - missed)
    assert found / leases == pytest.approx(expected, abs=4 * (expected * (1 - expected) / leases) ** 0.5 + 1e-9)
