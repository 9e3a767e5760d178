"""Pure decisions about a vault's money: may a job be admitted, which range does a lease get, how is an amount shared."""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
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


class TakenRanges:
    """Ranges of a vault, those that touch as one: leases lie side by side, so a gap is found among few, however many leases there are."""

    def __init__(self, taken: Iterable[tuple[int, int]] = ()) -> None:
        self._lowers: list[int] = []
        self._uppers: list[int] = []
        for lower, upper in sorted(taken):
            if self._uppers and lower <= self._uppers[-1]:
                self._uppers[-1] = max(self._uppers[-1], upper)
            elif lower < upper:
                self._lowers.append(lower)
                self._uppers.append(upper)

    def __len__(self) -> int:
        return len(self._lowers)

    def lowest_gap(self, *, start: int, size: int, end: int) -> int | None:
        """Where a range of `size` fits, at or after `start`, ending by `end`; None when nowhere."""
        position = start
        for at in range(bisect_right(self._uppers, start), len(self)):
            if self._lowers[at] - position >= size:
                break
            position = self._uppers[at]
        return position if position + size <= end else None

    def take(self, lower: int, upper: int) -> None:
        """A range that lies in a gap."""
        at = bisect_left(self._uppers, lower)
        if lower == upper:
            return
        if at < len(self) and self._uppers[at] == lower:
            self._uppers[at] = upper
        else:
            self._lowers.insert(at, lower)
            self._uppers.insert(at, upper)
        if at + 1 < len(self) and self._lowers[at + 1] == upper:
            self._uppers[at] = self._uppers.pop(at + 1)
            del self._lowers[at + 1]
