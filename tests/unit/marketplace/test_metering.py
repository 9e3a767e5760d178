"""Useful time: properties that must hold for any claim, and the examples that explain them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.metering import Meter, payable_ms, seen_start_ms, useful_ms
from torg_marketplace.rules.pricing import affordable_ms
from torg_protocol.money import cost
from torg_protocol.states import Billing

MS = st.integers(min_value=0, max_value=10**10)
PRICE = st.integers(min_value=0, max_value=10**12)


@st.composite
def meters(draw: st.DrawFn) -> Meter:
    price, gpus, max_amount = draw(PRICE), draw(st.integers(1, 64)), draw(st.integers(0, 10**15))
    recorded = draw(MS)
    affordable = affordable_ms(max_amount, price, gpus)
    recorded = recorded if affordable is None else min(recorded, affordable)
    return Meter(
        claimed_ms=draw(MS),
        seen_ms=draw(MS),
        skew_ms=draw(st.integers(0, 5_000)),
        checkpoint_ms=draw(MS),
        max_duration_ms=draw(st.integers(1, 10**10)),
        max_amount=max_amount,
        price_per_gpu_hour=price,
        billable_gpus=gpus,
        recorded_ms=recorded,
        recorded_amount=cost(price, gpus, recorded),
    )


@given(meters(), st.sampled_from(Billing))
def test_never_more_than_claimed_seen_allowed_or_affordable(meter: Meter, billing: Billing) -> None:
    payable = payable_ms(meter, billing)
    assert payable >= 0
    if payable:
        total = meter.recorded_ms + payable
        assert total <= meter.claimed_ms
        assert total <= meter.seen_ms + meter.skew_ms
        assert total <= meter.max_duration_ms
    amount = cost(meter.price_per_gpu_hour, meter.billable_gpus, payable)
    assert meter.recorded_amount + amount <= meter.max_amount or payable == 0


@given(meters())
def test_a_lost_job_costs_no_more_than_its_checkpoint(meter: Meter) -> None:
    payable = payable_ms(meter, Billing.CHECKPOINT)
    assert payable <= payable_ms(meter, Billing.FULL)
    assert payable == 0 or meter.recorded_ms + payable <= meter.checkpoint_ms
    assert payable_ms(meter, Billing.NONE) == 0


@given(meters())
def test_believed_time_is_bounded_by_each_witness(meter: Meter) -> None:
    assert 0 <= useful_ms(meter) <= min(meter.claimed_ms, meter.seen_ms + meter.skew_ms, meter.max_duration_ms)


@given(st.integers(0, 10**15), st.integers(1, 10**12), st.integers(1, 64))
def test_affordable_time_is_the_longest_that_fits(amount: int, price: int, gpus: int) -> None:
    longest = affordable_ms(amount, price, gpus)
    assert longest is not None
    assert cost(price, gpus, longest) <= amount < cost(price, gpus, longest + 1)


def test_free_time_is_affordable_without_end() -> None:
    assert affordable_ms(0, 0, 1) is None


def test_a_start_that_we_could_see_is_when_we_saw_it() -> None:
    assert seen_start_ms(claimed_start_ms=1_900, received_ms=2_000, granted_ms=1_000, connected_ms=500) == 2_000


def test_a_claimed_start_in_the_past_is_not_believed_while_connected() -> None:
    """Its clock is behind, or it lies: preparation would be billed. Found by the simulation."""
    assert seen_start_ms(claimed_start_ms=10, received_ms=2_000, granted_ms=1_000, connected_ms=500) == 2_000
    assert seen_start_ms(claimed_start_ms=10, received_ms=9_000, granted_ms=1_000, connected_ms=8_900) == 1_000


def test_a_start_during_an_outage_is_when_the_node_says() -> None:
    assert seen_start_ms(claimed_start_ms=1_500, received_ms=9_000, granted_ms=1_000, connected_ms=8_900) == 1_500


@given(MS, MS, MS, MS)
def test_a_start_lies_between_grant_and_receipt(claimed: int, granted: int, later: int, connected: int) -> None:
    received = granted + later
    start = seen_start_ms(claimed_start_ms=claimed, received_ms=received, granted_ms=granted, connected_ms=connected)
    assert granted <= start <= received


@given(MS, MS, MS, st.integers(0, 10**6))
def test_what_was_recorded_is_not_payable_again(claimed: int, recorded: int, checkpoint: int, waited: int) -> None:
    """At no price nothing bounds a record but time: of a job that was lost, up to the checkpoint, less what was waited for others."""
    meter = Meter(
        claimed_ms=claimed,
        seen_ms=claimed,
        skew_ms=0,
        checkpoint_ms=checkpoint,
        max_duration_ms=10**11,
        max_amount=0,
        price_per_gpu_hour=0,
        billable_gpus=1,
        recorded_ms=recorded,
        waited_ms=waited,
    )
    full, kept = max(0, claimed - waited), max(0, checkpoint - waited)
    assert payable_ms(meter, Billing.FULL) == max(0, full - recorded)
    assert payable_ms(meter, Billing.CHECKPOINT) == max(0, min(full, kept) - recorded)
