"""Ranges of a vault that leases are paid from: never overlapping, and how much money it takes so that none waits for a settlement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.money import TakenRanges

MOST = 1_000
Steps = list[tuple[int, int, int]]
STEPS = st.lists(st.tuples(st.integers(1, MOST), st.integers(0, 30), st.integers(0, MOST)), max_size=40)


@given(steps=STEPS, start=st.integers(0, 10_000))
def test_a_range_is_found_below_twice_of_what_the_unsettled_ones_could_be(steps: Steps, start: int) -> None:
    """Each step: a lease of this size begins; and one of those that run ends, having cost this much of its range."""
    taken: list[tuple[int, int]] = []
    for size, ends, cost in steps:
        lower = TakenRanges(taken).lowest_gap(start=start, size=size, end=start + (2 * len(taken) + 1) * MOST)
        assert lower is not None
        assert lower >= start
        assert all(upper <= lower or lower + size <= other for other, upper in taken)
        taken.append((lower, lower + size))
        if ends < len(taken):
            other, upper = taken[ends]
            taken[ends] = (other, min(other + cost, upper))
            if not cost:
                del taken[ends]


def test_leases_side_by_side_are_looked_at_as_one() -> None:
    """A lease costs the same, whether ten or ten thousand are unsettled."""
    ranges = TakenRanges((10 * number, 10 * number + 10) for number in reversed(range(1_000)))
    for number in range(1_000, 2_000):
        lower = ranges.lowest_gap(start=0, size=10, end=10**6)
        assert lower == 10 * number
        ranges.take(lower, lower + 10)
    assert len(ranges) == 1
