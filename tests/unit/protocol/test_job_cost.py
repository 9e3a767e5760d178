"""What a client signs for more time is what the marketplace asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.actors import spec
from torg_marketplace.rules import pricing
from torg_protocol.job_cost import largest_cost, verification_price, work_within
from torg_protocol.jobspec import load_job_spec

TWO_HOURS_MS, PRICE = 7_200_000, 1_000_003
METRIC = {"policy": "metric", "catalogue": "cnn", "metric": "accuracy", "target": "0.9"}


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 2_000_006),
        ({"resources": {"gpus": 4}}, 8_000_024),
        (
            {"resources": {"gpus": 1, "gpu_fraction": "0.25"}},
            500_000,
        ),  # a quarter of the price, rounded down, for two hours
        ({"gang": {"size": 3}}, 6_000_018),
        ({"verify": {"policy": "quorum", "replicas": 3}, "outputs": ["result.txt"]}, 6_000_018),
        ({"limits": {"max_duration": "1h", "max_cost": "0.5"}}, 500_000),
        ({"verify": METRIC}, 2_020_006),  # one per cent, rounded down
        ({"verify": {"policy": "replay", "catalogue": "rnn", "segments": 3}}, 2_120_006),  # two for each segment
        ({"verify": {"policy": "activation", "catalogue": "generate"}}, 2_020_006),
        ({"verify": METRIC, "limits": {"max_duration": "1h", "max_cost": "0.5"}}, 500_000),
    ],
    ids=[
        "one",
        "cards",
        "share",
        "gang",
        "quorum",
        "bounded",
        "metric",
        "replay",
        "activation",
        "bounded-metric",
    ],
)
def test_both_sides_come_to_the_same_maximum(changes: dict[str, Any], most: int) -> None:
    job = load_job_spec(spec(**changes))

    assert largest_cost(job, PRICE, TWO_HOURS_MS, 6) == most
    assert pricing.max_amount(job, PRICE, 6, max_duration_ms=TWO_HOURS_MS) == most


@given(st.integers(0, 2**62), st.integers(1, 8), st.lists(st.integers(0, 2**40), max_size=5))
def test_work_and_its_verification_never_cost_more_than_was_agreed(
    amount: int, segments: int, parts: list[int]
) -> None:
    job = load_job_spec(spec(verify={"policy": "replay", "catalogue": "rnn", "segments": segments}))

    work = work_within(job, amount)
    assert work + verification_price(job, work) <= amount
    assert (work + 2) + verification_price(job, work + 2) > amount, "and it is as much work as that pays"
    assert sum(verification_price(job, part) for part in parts) <= verification_price(job, sum(parts)), "lease by lease"
