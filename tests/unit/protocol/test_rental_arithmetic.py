"""Intervals: whoever walks away and whenever, the other side loses one interval at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_protocol.rentals import Rate

RATES = st.builds(
    Rate,
    price_per_gpu_hour=st.integers(1, 10**12),
    billable_gpus=st.integers(1, 64),
    interval_ms=st.integers(500, 3_600_000),
)
AMOUNTS = st.integers(1, 10**15)


@given(RATES, AMOUNTS)
def test_covered_time_is_the_longest_that_costs_no_more(rate: Rate, cap: int) -> None:
    covered = rate.covered_ms(cap)
    assert rate.amount(covered) <= cap < rate.amount(covered + 1)


@given(RATES, AMOUNTS, st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_client_never_signs_more_than_one_interval_beyond_its_own_clock(
    rate: Rate, max_amount: int, claimed: int, seen: int
) -> None:
    cap = rate.next_cap(claimed, seen, max_amount)
    assert cap <= max_amount
    assert cap <= rate.amount(seen) + rate.amount(rate.interval_ms) + 1
    assert cap <= rate.amount(claimed) + rate.amount(rate.interval_ms) + 1


@given(RATES, AMOUNTS, st.integers(0, 10**15))
def test_a_node_stops_at_most_one_interval_beyond_the_cap_and_never_beyond_the_budget(
    rate: Rate, max_amount: int, cap: int
) -> None:
    cap = min(cap, max_amount)
    worked = rate.works_until_ms(cap, max_amount)
    assert rate.amount(worked) - rate.due(worked, cap) <= rate.amount(rate.interval_ms) + 1
    assert rate.amount(worked) <= max_amount


@given(
    RATES,
    AMOUNTS,
    st.lists(st.tuples(st.integers(1, 2_000_000), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 100),
)
def test_whoever_walks_away_the_other_loses_one_interval_at_most(
    rate: Rate, max_amount: int, ticks: list[tuple[int, bool]], lies_percent: int
) -> None:
    """Time passes in steps; at some the client raises its cap, at others it is silent; the node may claim more than it worked."""
    one = rate.amount(rate.interval_ms) + 1
    cap = rate.next_cap(0, 0, max_amount)
    assert cap <= one  # lost when the node takes the first cap and never starts
    now = worked = 0
    for passed, heard in ticks:
        now += passed
        worked = min(now, rate.works_until_ms(cap, max_amount))
        owed, due = rate.amount(worked), rate.due(worked, cap)
        assert owed - due <= one  # the client walks away now
        if worked < now:
            break  # the node has stopped, for want of a cap or at the budget
        if heard:
            claimed = worked + worked * lies_percent // 100
            cap = max(cap, rate.next_cap(claimed, now, max_amount))
        assert cap - rate.amount(now) <= one  # the node takes all of the cap and is gone


@given(RATES, st.integers(2, 50))
def test_a_client_that_raises_its_cap_each_interval_is_never_stopped_before_its_budget(rate: Rate, count: int) -> None:
    max_amount = rate.amount(rate.interval_ms * (count + 5)) + 1
    cap = rate.next_cap(0, 0, max_amount)
    for number in range(1, count):
        now = number * rate.interval_ms
        assert rate.works_until_ms(cap, max_amount) >= now
        cap = rate.next_cap(now, now, max_amount)
