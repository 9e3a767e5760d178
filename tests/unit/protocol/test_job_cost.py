"""What a client signs for more time is what the marketplace asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import spec
from torg_marketplace.rules import pricing
from torg_protocol.job_cost import largest_cost
from torg_protocol.jobspec import load_job_spec

TWO_HOURS_MS, PRICE = 7_200_000, 1_000_003


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
    ],
    ids=["one", "cards", "share", "gang", "quorum", "bounded"],
)
def test_both_sides_come_to_the_same_maximum(changes: dict[str, Any], most: int) -> None:
    job = load_job_spec(spec(**changes))

    assert largest_cost(job, PRICE, TWO_HOURS_MS, 6) == most
    assert pricing.max_amount(job, PRICE, 6, max_duration_ms=TWO_HOURS_MS) == most
