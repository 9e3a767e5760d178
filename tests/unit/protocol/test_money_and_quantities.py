"""Amounts and quantities as people write them: strict at the edge, integers inside, nothing guessed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_protocol.errors import Invalid
from torg_protocol.money import MAX_U64, MS_PER_HOUR, cost, format_amount, parse_amount
from torg_protocol.quantities import (
    as_written,
    format_cpu_millis,
    parse_cpu_millis,
    parse_duration_ms,
    parse_size_bytes,
)


@given(st.integers(0, MAX_U64), st.integers(0, 18))
def test_every_amount_survives_being_written_and_read(amount: int, decimals: int) -> None:
    assert parse_amount(format_amount(amount, decimals), decimals) == amount


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *(
            (text, "amount_invalid")
            for text in ["", "-1", "+1", "1e3", " 1", "1 ", "1,5", ".5", "5.", "01", "1.2.3", "٣", "0x1", "NaN"]
        ),
        ("0.0000001", "amount_too_precise"),
        ("18446744073709.551616", "amount_too_large"),
    ],
)
def test_what_is_no_amount_is_refused_with_field_and_value(text: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_amount(text, 6, field="limits.max_cost")

    assert (refused.value.code, refused.value.field, refused.value.value) == (code, "limits.max_cost", text)


def test_the_largest_amount_is_one() -> None:
    assert parse_amount("18446744073709.551615", 6) == MAX_U64


@given(st.integers(0, 10**12), st.integers(1, 64), st.integers(0, 10**10))
def test_useful_time_costs_its_exact_price_rounded_down_once(price: int, gpus: int, useful_ms: int) -> None:
    exact = Fraction(price * gpus * useful_ms, MS_PER_HOUR)
    assert 0 <= exact - cost(price, gpus, useful_ms) < 1


@given(st.integers(0, 10**9), st.integers(1, 8), st.lists(st.integers(0, 10**7), max_size=5))
def test_intervals_never_cost_more_than_the_whole(price: int, gpus: int, intervals: list[int]) -> None:
    """And at most one base unit less for each rounding."""
    whole = cost(price, gpus, sum(intervals))
    parts = sum(cost(price, gpus, useful_ms) for useful_ms in intervals)
    assert 0 <= whole - parts <= len(intervals)


@pytest.mark.parametrize(
    ("text", "ms"), [("15m", 900_000), ("1.5h", 5_400_000), ("250ms", 250), ("2 d", 172_800_000), ("0.001s", 1)]
)
def test_durations(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(("text", "size"), [("512MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("7B", 7)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("value", [15, "15", "15 minutes", "m", "-1m", "1e3s", "0.0001s", "9" * 30 + "d", None, True])
def test_a_duration_without_its_unit_is_never_guessed(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a duration|unknown unit|finer|too large"):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    ("amount", "like", "written"),
    [
        (2_592_000_000, "9999h", "30d"),
        (1_000, "5ms", "1s"),
        (90_000, "1d", "90s"),
        (4 << 20, "1kB", "4MiB"),
        (0, "1B", "0B"),
        (5, "5", None),
        (5, "5 parsecs", None),
    ],
)
def test_an_amount_is_said_in_what_its_reader_wrote(amount: int, like: str, written: str | None) -> None:
    assert as_written(amount, like) == written


@pytest.mark.parametrize("value", ["512", "512mb", "1 KB", "1.5B", "", 512])
def test_a_size_is_as_strict(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a size|unknown unit|finer"):
        parse_size_bytes(value)


@given(st.integers(0, 99_999_999))
def test_cores_survive_being_written_and_read(millis: int) -> None:
    assert parse_cpu_millis(format_cpu_millis(millis)) == millis


@pytest.mark.parametrize("value", [True, "1,5", "0.0001", -1, "1e2", float("nan"), [1]])
def test_what_is_no_number_of_cores(value: object) -> None:
    with pytest.raises(ValueError, match="not a number of cores"):
        parse_cpu_millis(value)
