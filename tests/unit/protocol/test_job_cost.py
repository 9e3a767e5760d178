"""What a client signs for more time is what the marketplace asks for it: both work it out for themselves."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import spec
from torg.extension import _bounded
from torg_marketplace.rules import pricing
from torg_protocol.jobspec import load_job_spec

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resources": {"gpus": 4}},
        {"gang": {"size": 3}},
        {"verify": {"policy": "quorum", "replicas": 3}, "outputs": ["result.txt"]},
        {"limits": {"max_duration": "1h", "max_cost": "0.5"}},
    ],
    ids=["one", "cards", "gang", "quorum", "bounded"],
)
def test_both_sides_come_to_the_same_maximum(changes: dict[str, Any]) -> None:
    job = load_job_spec(spec(**changes))
    theirs = pricing.max_amount(job, 1_000_003, 6, max_duration_ms=2 * HOUR_MS)

    assert _bounded(job, 1_000_003, 2 * HOUR_MS, 6) == theirs
