"""The rule for slow leases, as a table and by its properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.slowness import Measured, shortfall

SOLD = {"gpu:0": 1000, "gpu:1": 1000}


def proofs(unit: str, *gops: float, busy: bool = False) -> list[Measured]:
    return [Measured(unit, figure, busy) for figure in gops]


@pytest.mark.parametrize(
    ("what", "seen", "refund"),
    [
        ("as it was sold", proofs("gpu:0", 1100, 1050), None),
        ("a little slower, within the tolerance", proofs("gpu:0", 800, 800), None),
        ("just beyond it", proofs("gpu:0", 760, 769), 231),
        ("half the class", proofs("gpu:0", 500, 500), 500),
        ("one proof is no evidence", proofs("gpu:0", 100), None),
        ("doubt is the node's: the upper of two", proofs("gpu:0", 100, 1000), None),
        ("one bad moment of three", proofs("gpu:0", 100, 990, 1010), None),
        ("the worst unit counts", proofs("gpu:0", 1000, 1000) + proofs("gpu:1", 250, 250), 750),
        ("at work it may take three times as long", proofs("gpu:0", 340, 350, busy=True), None),
        ("slower than that", proofs("gpu:0", 100, 100, busy=True), 700),
        ("somebody else's unit", proofs("gpu:7", 1, 1), None),
    ],
)
def test_what_is_given_back(what: str, seen: list[Measured], refund: int | None) -> None:
    found = shortfall(1000, SOLD, seen, tolerance=1.3)
    assert (None if found is None else found.refund) == refund, what


def test_nothing_was_promised_of_what_is_unproven() -> None:
    assert shortfall(1000, {}, proofs("gpu:0", 1, 1), tolerance=1.3) is None


@given(
    price=st.integers(0, 10**12),
    sold=st.integers(1, 10**7),
    gops=st.lists(st.floats(0.01, 10**7), min_size=2, max_size=6),
    tolerance=st.floats(1.0, 2.0),
)
def test_never_more_than_the_price_and_never_for_a_unit_of_its_class(
    price: int, sold: int, gops: list[float], tolerance: float
) -> None:
    found = shortfall(price, {"gpu:0": sold}, proofs("gpu:0", *gops), tolerance=tolerance)
    if found is not None:
        assert 0 < found.refund <= price
        assert found.measured_gops * tolerance < sold
    if min(gops) >= sold:
        assert found is None
