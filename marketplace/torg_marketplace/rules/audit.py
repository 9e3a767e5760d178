"""How often a node's work is looked at again, and what it loses when that shows that it cheated.

A node that cheats saves C and is found out with probability p; then it is not paid R, loses the stake S that stood behind the lease, and
the worth V of its good name. With p (R + S + V) >= C no amount of cheating pays on average (one segment looked at is enough: of a share c
of bad ones it finds c). The rule is published, so that a node can compute how often it is audited: docs/explanation/verification.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torg_chain.vault import DISPUTE_DELAY_S, SLASH_MARGIN_S, VaultState

FIRST_LEASES_ALL = 10  # of a node, and again after each audit that it failed: all of them are audited
LEAST_PERMILLE = 50
COST_PERMILLE = 800  # of a job's reward: what honest work costs its node, C
# A good name is worth a tenth of the margin R - C of the leases that it took, at most of a hundred: V is at most 2 R.
NAME_PERMILLE_OF_MARGIN = 100
NAME_LEASES = 100
# With so many rewards at stake the least rate suffices (0.8 / 0.05 - 1): more is never taken for one lease.
MOST_STAKE_REWARDS = COST_PERMILLE // LEAST_PERMILLE - 1
# A slash takes a day of dispute and the program's margin; with this much for verdict and proposal besides, nobody gets away by closing.
LEAST_GRACE_S = DISPUTE_DELAY_S + SLASH_MARGIN_S + 2 * 3600


@dataclass(frozen=True, slots=True)
class Standing:
    """`clean_leases`: kept since the node's last failed audit. `stake`: behind this very lease, in base units."""

    clean_leases: int
    stake: int
    reputation_permille: int


def audit_permille(standing: Standing, reward: int) -> int:
    """The chance that a lease of this reward is audited."""
    if standing.clean_leases < FIRST_LEASES_ALL or reward <= 0:
        return 1000
    needed = -(-COST_PERMILLE * reward // (reward + standing.stake + name_worth(standing, reward)))
    return min(max(needed, LEAST_PERMILLE), 1000)


def name_worth(standing: Standing, reward: int) -> int:
    """V: what a failed audit costs beside money, since everything is audited again and others are preferred."""
    leases = min(standing.clean_leases, NAME_LEASES)
    margin = reward * (1000 - COST_PERMILLE)
    return leases * margin * NAME_PERMILLE_OF_MARGIN * standing.reputation_permille // 1000**3


def stake_behind(free: int, undecided: int, reward: int) -> int:
    """S of one lease: its share of what is free of the node's collateral, among all its leases that are not decided (this one is).

    Kept aside for the lease from then on, so that leases that cheat together never have the same money at stake.
    """
    return max(0, min(free // max(undecided, 1), MOST_STAKE_REWARDS * reward))


def counted_balance(collateral: VaultState, now_s: int) -> int:
    """What of a collateral can still be taken by a slash that is proposed some time from now."""
    leaves_in_time = collateral.close_at != 0 and collateral.close_at < now_s + LEAST_GRACE_S
    return 0 if leaves_in_time else collateral.balance
