"""Whole markets under everything that goes wrong: promises are checked after every step. A failure prints its seed and its steps."""

from __future__ import annotations

import logging
import os

import pytest

from torg_marketplace.simulation.plan import Kind, make_plan
from torg_marketplace.simulation.run import Report, run_plan, simulate
from torg_marketplace.stages import STAGES

# A longer hunt: TORG_SIMULATION_SEEDS=2000 pytest tests/simulation -n auto, or `torg-marketplace simulate --seeds 2000`
SEEDS = int(os.environ.get("TORG_SIMULATION_SEEDS", "32"))
AT_ONCE = 4


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_promises_hold_whatever_happens(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        report = simulate(seed)
        assert report.failure is None, str(report.failure)


@pytest.mark.parametrize("first", range(1000, 1200, 25))
def test_promises_hold_in_many_short_lives(first: int) -> None:
    for seed in range(first, first + 25):
        report = simulate(seed, steps=20)
        assert report.failure is None, str(report.failure)


@pytest.mark.timeout(900)
def test_promises_hold_in_a_market_of_more_than_a_hundred_nodes() -> None:
    """More happens at the same moment than in small ones: two bugs that hundreds of seeds had not met were found within 25 steps."""
    report = simulate(7, nodes=120, steps=25)
    assert report.failure is None, str(report.failure)


@pytest.mark.parametrize("seed", [47, 48])
def test_a_marketplace_that_slept_gives_every_lease_a_fresh_grace(seed: int) -> None:
    """Its pauses are its own, also those that no restart ends: the promises about time count from there."""
    report = simulate(seed)
    assert report.failure is None, str(report.failure)


def test_the_same_seed_does_the_same() -> None:
    first, second = simulate(5, steps=40), simulate(5, steps=40)

    assert (first.jobs, first.reasons, first.paid, first.waits_ms) == (
        second.jobs,
        second.reasons,
        second.paid,
        second.waits_ms,
    )


def test_what_a_crowd_says_shares_transactions() -> None:
    """As in production: events of leases, submissions and signatures of several parties are applied by one commit."""
    before = _calls()

    simulate(7)

    shared, *pieces = (now - earlier for now, earlier in zip(_calls(), before, strict=True))
    assert all(pieces)
    assert shared < sum(pieces)


def _calls() -> list[int]:
    names = ("shared transactions", "lease events", "submit", "receipts")
    return [STAGES[name].calls if name in STAGES else 0 for name in names]


def test_it_leaves_the_log_of_others_alone() -> None:
    log = logging.getLogger("torg_marketplace")
    before = log.level

    simulate(5, steps=1)

    assert log.level == before


def test_any_part_of_a_plan_can_be_run() -> None:
    plan = make_plan(7, steps=60)

    report = run_plan(plan.only(plan.steps[::3]))

    assert report.failure is None, str(report.failure)


def test_plans_have_every_kind_of_step() -> None:
    kinds = {step.kind for seed in range(20) for step in make_plan(seed).steps}

    assert kinds == set(Kind)


def test_things_happen() -> None:
    total = Report()
    for seed in range(100, 104):
        total.add(simulate(seed))

    assert total.paid > 0
    assert len(total.reasons) >= 5, total.reasons
