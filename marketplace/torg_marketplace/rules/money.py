"""Pure decisions about a vault's money: may a job be admitted, which range does a lease get, how is an amount shared."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class VaultFacts:
    settled: int
    balance: int
    final_total: int
    open_maximum: int
    closing: bool
    blocked: bool

    @property
    def committed(self) -> int:
        return self.final_total + self.open_maximum

    @property
    def deposited(self) -> int:
        return self.settled + self.balance


class Refusal(enum.StrEnum):
    BLOCKED = "vault_blocked"
    CLOSING = "vault_closing"
    UNDERFUNDED = "vault_underfunded"
    CAP_STALE = "cap_stale"


def refusal(vault: VaultFacts, cap: int, max_amount: int) -> Refusal | None:
    """Why a job of at most `max_amount` cannot be admitted under this cap; None when it can."""
    if vault.blocked:
        return Refusal.BLOCKED
    if vault.closing:
        return Refusal.CLOSING
    needed = vault.committed + max_amount
    if needed > vault.deposited:
        return Refusal.UNDERFUNDED
    if needed > cap:
        return Refusal.CAP_STALE
    return None


def split_fee(amount: int, fee_basis_points: int) -> tuple[int, int]:
    """(node's share, marketplace's fee); the fee is rounded down, so that nothing is lost or made."""
    fee = amount * fee_basis_points // BASIS_POINTS
    return amount - fee, fee


def split_budget(amount: int, prices: Sequence[int]) -> list[int]:
    """What each of several leases may cost, by its price: they run at the same time, and so come to their ends together. Adds up to `amount`
    at most."""
    total = sum(prices)
    return [amount * price // total if total else amount // len(prices) for price in prices]


def lowest_gap(taken: Sequence[tuple[int, int]], *, start: int, size: int, end: int) -> int | None:
    """Where a range of `size` fits between the ranges in `taken`, at or after `start`, ending by `end`; None when nowhere."""
    position = start
    for lower, upper in sorted(taken):
        if upper <= position:
            continue
        if lower - position >= size:
            break
        position = max(position, upper)
    return position if position + size <= end else None
