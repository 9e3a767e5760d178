"""The learned limit of a walk through memory: liars do not teach it, honest units are within it, and it is never looser than without learning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.proof import Evidence, judge_proof, tasks_for
from torg_marketplace.rules.walk_limit import (
    LEAST_OWNERS,
    WalkSample,
    learned_share,
    recomputing_ms,
    share_of,
    walk_limit_ms,
)

HONEST = st.lists(st.floats(0.05, 0.3), min_size=LEAST_OWNERS, max_size=24)
LIES = st.lists(st.floats(0, 1e6), max_size=23)
WIDEST = 3 * 1.4826  # deviations
_, WALK = tasks_for(100, 0)


def samples(shares: list[float], of: str) -> list[WalkSample]:
    return [WalkSample(f"{of} {number}", share) for number, share in enumerate(shares)]


@given(honest=HONEST, lies=LIES)
def test_liars_who_are_fewer_move_it_only_within_what_honest_owners_show(
    honest: list[float], lies: list[float]
) -> None:
    found = learned_share(samples(honest, "honest") + samples(lies[: len(honest) - 1], "liar"))
    assert found is not None
    spread = max(honest) - min(honest)
    assert min(honest) <= found <= max(honest) + WIDEST * spread + 1e-9


@given(honest=HONEST, lie=st.floats(0, 1e6), times=st.integers(1, 200))
def test_an_owner_counts_once_however_many_nodes_and_proofs_it_has(honest: list[float], lie: float, times: int) -> None:
    others = samples(honest, "honest")
    assert learned_share([*others, WalkSample("liar", lie)]) == learned_share(
        [*others, *[WalkSample("liar", lie)] * times]
    )


@given(honest=HONEST, lies=LIES, gops=st.floats(1, 1e6))
def test_it_is_never_looser_than_what_holds_while_nothing_is_learned(
    honest: list[float], lies: list[float], gops: float
) -> None:
    learned = learned_share(samples(honest, "honest") + samples(lies, "liar"))
    assert walk_limit_ms(WALK, gops, learned=learned) <= walk_limit_ms(WALK, gops)
    assert walk_limit_ms(WALK, gops, learned=learned, busy=True) == 3 * walk_limit_ms(WALK, gops, learned=learned)


@given(honest=HONEST)
def test_at_least_half_of_the_owners_that_it_was_learned_from_are_within_it(honest: list[float]) -> None:
    found = learned_share(samples(honest, "honest"))
    assert found is not None
    assert 2 * sum(share <= found + 1e-12 for share in honest) >= len(honest)


@given(shares=st.lists(st.floats(0, 10), max_size=50))
def test_nothing_is_learned_from_a_few_owners(shares: list[float]) -> None:
    few = [WalkSample(f"owner {number % (LEAST_OWNERS - 1)}", share) for number, share in enumerate(shares)]
    assert learned_share(few) is None


@pytest.mark.parametrize(("stored", "proven"), [(1.0, True), (0.95, True), (0.9, False), (0.5, False), (0.0, False)])
def test_a_tenth_of_the_memory_that_is_not_there_shows(stored: float, proven: bool) -> None:
    gops, honest_ms = 100.0, 600.0
    learned = learned_share(samples([share_of(WALK, honest_ms, gops)] * LEAST_OWNERS, "honest"))
    walk_ms = honest_ms + (1 - stored) * recomputing_ms(WALK, gops)
    chain, _ = tasks_for(100, 0)
    seen = Evidence(
        chain=chain,
        walk=WALK,
        chain_ms=int(chain.operations / gops / 1e6),
        walk_ms=int(walk_ms),
        wrong_rows=0,
        wrong_lanes=0,
        opened=True,
        busy=False,
    )
    found = judge_proof(seen, 0, walk_share=learned)
    assert found.walked_in_time is proven
    assert found.result == ("passed" if proven else "slow"), "slowness is never a lie: nobody is struck"
