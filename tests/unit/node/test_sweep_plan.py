"""When a sweep is due and how much of it: values, and properties over any life of a wallet."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.node_settings import settings_in
from torg_node.settings import CONFIG_NAME, load_settings, write_settings
from torg_node.sweep_command import plan_of
from torg_node.sweep_plan import SweepPlan
from torg_protocol.errors import Invalid

WALLET = "So11111111111111111111111111111111111111112"
HOUR = 3_600_000
amounts = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("balance", "last_at_ms", "due"),
    [
        (0, None, 0),
        (100, None, 0),  # all of it stays
        (101, None, 1),  # never swept: the interval is over
        (101, 0, 0),
        (149, HOUR - 1, 0),
        (150, HOUR - 1, 50),  # enough is there, whenever the last one was
        (101, 2 * HOUR, 1),  # a clock that was wrong
    ],
)
def test_what_is_due(balance: int, last_at_ms: int | None, due: int) -> None:
    plan = SweepPlan(to=WALLET, keep=100, at_least=50, every="1h")

    assert plan.amount_due(balance, last_at_ms, now_ms=HOUR - 1) == due


@given(
    keep=amounts,
    at_least=st.none() | st.integers(1, 10**9),
    every=st.integers(60_000, 10**10),
    days=st.lists(st.tuples(amounts, st.integers(0, 10**9)), max_size=30),
)
def test_what_stays_stays_and_the_rest_leaves_in_time(
    keep: int, at_least: int | None, every: int, days: list[tuple[int, int]]
) -> None:
    plan = SweepPlan(to=WALLET, keep=keep, at_least=at_least, every=f"{every}ms")
    hot = cold = earned = now_ms = 0
    last: int | None = None
    for income, passed_ms in days:
        hot, earned, now_ms = hot + income, earned + income, now_ms + passed_ms
        due = plan.amount_due(hot, last, now_ms)
        if due:
            hot, cold, last = hot - due, cold + due, now_ms
            assert hot == keep
        elif hot > keep:
            assert last is not None
            assert now_ms - last < every
            assert at_least is None or hot - keep < at_least
        assert hot + cold == earned


def test_a_plan_without_a_time_or_with_a_typo_is_refused() -> None:
    for fields, message in (
        ({"to": WALLET}, "say when"),
        ({"to": "cold", "every": "7d"}, "not a wallet's address"),
        ({"to": WALLET, "every": "1s"}, "greater than or equal to 60000"),
        ({"to": WALLET, "every": "7d", "least": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            SweepPlan.model_validate(fields)


def test_the_plan_is_written_and_read_and_its_example_is_one(tmp_path: Path) -> None:
    plan = SweepPlan(to=WALLET, keep=5, every="36h")
    write_settings(settings_in(tmp_path, sweep=plan))
    assert load_settings(tmp_path).sweep == plan

    write_settings(settings_in(tmp_path))
    assert load_settings(tmp_path).sweep is None
    head, example = (tmp_path / CONFIG_NAME).read_text().split("# [sweep]\n")
    lines = example.replace("# ", "").replace('"WALLET"', f'"{WALLET}"')
    (tmp_path / CONFIG_NAME).write_text(f"{head}[sweep]\n{lines}")
    assert load_settings(tmp_path).sweep == SweepPlan(to=WALLET, at_least=50_000_000, every="7d")


def test_init_names_the_option_that_is_wrong() -> None:
    given = {"sweep_to": WALLET, "sweep_every": "7d", "sweep_keep": "0.5", "sweep_at_least": "20"}
    plan = plan_of(argparse.Namespace(**given), 6)
    assert plan == SweepPlan(to=WALLET, keep=500_000, at_least=20_000_000, every="7d")
    assert plan_of(argparse.Namespace(**{**given, "sweep_to": None}), 6) is None
    for name, text, field in (
        ("sweep_to", "cold", "sweep-to"),
        ("sweep_every", "now and then", "sweep-every"),
        ("sweep_keep", "-1", "sweep-keep"),
        ("sweep_at_least", "0", "sweep-at-least"),
    ):
        with pytest.raises(Invalid) as refused:
            plan_of(argparse.Namespace(**{**given, name: text}), 6)
        assert refused.value.field == field
