"""What goes into a capture, when, and what is done about one whose fate is in doubt."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.money import Refusal, TakenRanges, VaultFacts, refusal, split_budget, split_fee
from torg_marketplace.rules.settlement import (
    Action,
    Due,
    Evidence,
    Fate,
    is_due,
    is_exposed,
    make_batch,
    next_action,
    priority_price,
)
from torg_protocol.states import SETTLEMENT_MOVES, SettlementState

SETTLED = 1000
SENT = (SettlementState.UNKNOWN, SettlementState.CONFIRMED)
LEADS_TO = {
    Action.CONFIRM: SettlementState.CONFIRMED,
    Action.FINALIZE: SettlementState.FINALIZED,
    Action.ROLL_BACK: SettlementState.UNKNOWN,
    Action.BURY: SettlementState.DEAD,
}
Dues = st.lists(
    st.builds(Due, st.uuids().map(str), st.sampled_from("abcdefg"), st.integers(1, 1000), st.integers(0, 5)),
    max_size=20,
    unique_by=lambda due: due.payout_id,
)


def wanted(state: SettlementState, fate: Fate, *, expired: bool, moved: bool) -> Action:
    """Written down a second time. Only what can surely never land is buried: its blockhash is dead, and nothing else explains the total."""
    confirmed = state is SettlementState.CONFIRMED
    if fate is Fate.FINALIZED:
        return Action.FINALIZE
    if fate is Fate.CONFIRMED:
        return Action.WAIT if confirmed else Action.CONFIRM
    if confirmed:
        return Action.ROLL_BACK
    if fate is Fate.FAILED:
        return Action.BURY if expired else Action.WAIT
    if fate is Fate.PROCESSED:
        return Action.WAIT
    if not expired:
        return Action.RESEND
    return Action.CATCH_UP if moved else Action.BURY


@pytest.mark.parametrize(("state", "fate"), list(product(SENT, Fate)))
@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_each_doubt_has_its_answer(state: SettlementState, fate: Fate, expired: bool, moved: bool) -> None:
    evidence = Evidence(fate, expired, SETTLED + 1 if moved else SETTLED)
    action = next_action(state, SETTLED, evidence)
    assert action is wanted(state, fate, expired=expired, moved=moved)
    assert action not in LEADS_TO or LEADS_TO[action] in SETTLEMENT_MOVES[state]


@given(Dues, st.integers(1, 5), st.integers(0, 5000))
def test_a_batch_keeps_both_its_limits_and_leaves_nothing_out_that_fits(
    waiting: list[Due], max_payees: int, at_most: int
) -> None:
    batch = make_batch(waiting, max_payees=max_payees, at_most=at_most)
    chosen = [due for due in waiting if due.payout_id in batch.payout_ids]
    assert batch.amount == sum(due.amount for due in chosen) <= at_most
    assert len(batch.payees) == len({due.address for due in chosen}) <= max_payees
    for address, amount in batch.payees:
        assert amount == sum(due.amount for due in chosen if due.address == address)
    for due in waiting:
        if due not in chosen:
            is_new = due.address not in dict(batch.payees)
            assert batch.amount + due.amount > at_most or (is_new and len(batch.payees) == max_payees)


def test_the_oldest_are_paid_first() -> None:
    waiting = [Due("p3", "c", 5, 30), Due("p1", "a", 5, 10), Due("p2", "b", 5, 20)]
    assert make_batch(waiting, max_payees=9, at_most=10).payout_ids == ("p1", "p2")


def test_a_batch_is_due_by_age_by_size_or_in_a_hurry() -> None:
    waiting = [Due("p1", "a", 60, 1_000), Due("p2", "b", 39, 5_000)]

    def due(now_ms: int, threshold: int = 100, *, hurry: bool = False) -> bool:
        return is_due(waiting, now_ms=now_ms, max_age_ms=600, threshold=threshold, hurry=hurry)

    assert [due(1_599), due(1_600), due(1_001, 99), due(1_001, hurry=True)] == [False, True, True, True]
    assert not is_due([], now_ms=10**9, max_age_ms=1, threshold=0, hurry=True)


def test_who_is_owed_half_of_what_its_node_bears_is_paid_soon() -> None:
    owed = [Due("p1", "a", 30, 0), Due("p2", "a", 20, 0), Due("p3", "b", 70, 0)]
    assert is_exposed(owed, {"a": 100})
    assert not is_exposed(owed, {"a": 101, "b": 141})
    assert not is_exposed(owed, {})


def test_each_capture_that_died_doubles_what_the_next_one_offers() -> None:
    prices = [priority_price(0, attempts=tries, units=100_000, ceiling_lamports=1_000) for tries in range(6)]
    assert prices == [0, 2_000, 4_000, 8_000, 10_000, 10_000]
    assert priority_price(700, attempts=0, units=100_000, ceiling_lamports=1_000) == 700


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000))
def test_a_fee_is_rounded_down_and_nothing_is_lost(amount: int, share: int) -> None:
    to_node, fee = split_fee(amount, share)
    assert to_node + fee == amount
    assert fee * 10_000 <= amount * share < (fee + 1) * 10_000


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_leases_of_a_gang_never_cost_more_together_than_there_is(amount: int, prices: list[int]) -> None:
    shares = split_budget(amount, prices)
    assert amount - len(prices) < sum(shares) <= amount
    assert all(share >= 0 for share in shares)


Ranges = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


@given(Ranges, st.integers(0, 10), st.integers(1, 8), st.integers(0, 24))
def test_a_range_is_the_lowest_that_is_free(taken: list[tuple[int, int]], start: int, size: int, end: int) -> None:
    """By trying all of them."""

    def is_free(position: int) -> bool:
        return all(upper <= position or lower >= position + size for lower, upper in taken if lower < upper)

    free = [position for position in range(start, end - size + 1) if is_free(position)]
    ranges = TakenRanges(taken)
    lowest = ranges.lowest_gap(start=start, size=size, end=end)
    assert lowest == (free[0] if free else None)
    if lowest is not None:
        ranges.take(lowest, lowest + size)
        left = [position for position in free if position >= lowest + size]
        assert ranges.lowest_gap(start=start, size=size, end=end) == (left[0] if left else None)


@pytest.mark.parametrize(
    ("cap", "more", "changes", "refused"),
    [
        (100, 60, {}, None),
        (99, 60, {}, Refusal.CAP_STALE),
        (100, 61, {}, Refusal.CAP_STALE),
        (500, 110, {}, None),
        (500, 111, {}, Refusal.UNDERFUNDED),
        (100, 60, {"closing": True}, Refusal.CLOSING),
        (100, 60, {"closing": True, "blocked": True}, Refusal.BLOCKED),
    ],
)
def test_why_a_vault_takes_no_job(cap: int, more: int, changes: dict[str, bool], refused: Refusal | None) -> None:
    facts: dict[str, Any] = {
        "settled": 50,
        "balance": 100,
        "final_total": 30,
        "open_maximum": 10,
        "closing": False,
        "blocked": False,
    }
    assert refusal(VaultFacts(**(facts | changes)), cap, more) is refused
