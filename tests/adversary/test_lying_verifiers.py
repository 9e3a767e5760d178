"""Lying leases before lying verifiers: who is found, at which rate, and that no honest party ever pays."""

from __future__ import annotations

import pytest

from tests.adversary.verifiers import Verifier, audits
from torg_marketplace.rules.policy import MarketPolicy

AUDITS = 4_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(Verifier)[1:])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_no_honest_lease_is_blamed_and_no_honest_verifier_outvoted(kind: Verifier, share: float, seed: int) -> None:
    tally = audits(seed, AUDITS, crowd={Verifier.HONEST: 1 - share, kind: share})
    assert tally.blamed == 0
    assert tally.outvoted[Verifier.HONEST] == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_a_lie_is_missed_only_when_the_first_who_is_asked_is_a_friend(share: float, seed: int) -> None:
    tally = audits(seed, AUDITS, crowd={Verifier.HONEST: 1 - share, Verifier.FRIEND: share}, lying=0.5)
    assert tally.caught / tally.lied == pytest.approx(1 - share, abs=0.04)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_where_nothing_is_planted_a_lie_is_missed_only_by_two_friends_of_two_owners(share: float, seed: int) -> None:
    crowd = {Verifier.HONEST: 1 - share, Verifier.FRIEND: share}
    tally = audits(seed, AUDITS, crowd=crowd, lying=0.5, unplanted=True)
    assert tally.caught / tally.lied == pytest.approx(1 - share**2, abs=0.02)
    assert tally.blamed == 0


@pytest.mark.parametrize("seed", range(3))
def test_whoever_hands_over_anything_loses_each_time_unless_the_lease_lied_too(seed: int) -> None:
    tally = audits(seed, AUDITS, crowd={Verifier.HONEST: 0.7, Verifier.LAZY: 0.3}, lying=0.0)
    # Two of them in a row on a planted segment: nobody is blamed there, and we look into it.
    assert tally.lost(Verifier.LAZY) > 0.93


@pytest.mark.parametrize("seed", range(3))
def test_a_friend_of_everybody_is_found_by_planted_segments_alone(seed: int) -> None:
    tally = audits(seed, AUDITS, crowd={Verifier.HONEST: 0.9, Verifier.FRIEND: 0.1}, lying=0.0)
    planted = MarketPolicy().planted_permille / 1000
    assert tally.lost(Verifier.FRIEND) == pytest.approx(planted / (1 + planted), abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_among_honest_owners_we_execute_only_what_is_planted_or_disputed(seed: int) -> None:
    tally = audits(seed, AUDITS, crowd={Verifier.HONEST: 1.0}, lying=0.0)
    assert tally.ours / AUDITS == pytest.approx(MarketPolicy().planted_permille / 1000, abs=0.02)
