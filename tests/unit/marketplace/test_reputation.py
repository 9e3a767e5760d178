"""Reputation: the benefit of the doubt at first, and what is long ago weighs less and less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.reputation import RECENT, counted, reputation_permille


def test_a_newcomer_is_trusted_and_one_broken_lease_is_not_the_end() -> None:
    assert reputation_permille(0, 0) == 1000
    assert reputation_permille(0, 1) == 909
    assert reputation_permille(90, 1) == 990


@given(st.lists(st.booleans(), max_size=600))
def test_counts_stay_bounded_and_the_share_is_a_share(leases: list[bool]) -> None:
    kept = broken = 0
    for was_kept in leases:
        before = reputation_permille(kept, broken)
        kept, broken = counted(kept, broken, was_kept=was_kept)
        assert 0 <= kept + broken < RECENT
        assert 0 <= reputation_permille(kept, broken) <= 1000
        if not was_kept and kept + broken > RECENT // 2 + 1:
            assert reputation_permille(kept, broken) <= before


def test_a_node_that_mends_is_forgiven() -> None:
    kept, broken = 0, 0
    for _ in range(50):
        kept, broken = counted(kept, broken, was_kept=False)
    assert reputation_permille(kept, broken) < 200
    for _ in range(2_000):
        kept, broken = counted(kept, broken, was_kept=True)
    assert reputation_permille(kept, broken) >= 985


def test_what_was_broken_long_ago_weighs_half_and_no_less() -> None:
    assert counted(RECENT // 2, RECENT // 2 - 2, was_kept=True) == (RECENT // 2 + 1, RECENT // 2 - 2)
    assert counted(RECENT // 2 - 1, RECENT // 2, was_kept=True) == (RECENT // 4, RECENT // 4)
    assert counted(RECENT - 2, 1, was_kept=True) == (RECENT // 2 - 1, 1)
