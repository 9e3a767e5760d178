"""What is not finalized yet can still be undone: every such transaction with the accounts as they were before it.

From the same memory comes what a reader sees at a commitment level: an account as it was before the first transaction that is
not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from solders.account import Account
from solders.pubkey import Pubkey


@dataclass(slots=True)
class Change:
    """One transaction that landed. None: there was no such account."""

    slot: int
    signature: str
    before: dict[Pubkey, Account | None]


@dataclass(slots=True)
class UndoLog:
    """Oldest first."""

    changes: list[Change] = field(default_factory=list)

    def note(self, slot: int, signature: str, before: Mapping[Pubkey, Account | None]) -> None:
        self.changes.append(Change(slot, signature, dict(before)))

    def forget(self, up_to_slot: int) -> None:
        """What landed in these slots is final."""
        self.changes = [change for change in self.changes if change.slot > up_to_slot]

    def as_of(self, address: Pubkey, slot: int, newest: Account | None) -> Account | None:
        """An account as it was at the end of `slot`; `newest` is how it is now."""
        for change in self.changes:
            if change.slot > slot and address in change.before:
                return change.before[address]
        return newest

    def addresses_after(self, slot: int) -> set[Pubkey]:
        return {address for change in self.changes if change.slot > slot for address in change.before}

    def take_after(self, slot: int) -> list[Change]:
        """Removes what landed after `slot`; newest first, as it has to be undone."""
        taken = [change for change in self.changes if change.slot > slot]
        self.changes = [change for change in self.changes if change.slot <= slot]
        return taken[::-1]

    def rewrite(self, address: Pubkey, change: Callable[[Account | None], Account]) -> None:
        """Something that no fork can undo (a gift of the faucet) happened to an account: as if before everything here."""
        for item in self.changes:
            if address in item.before:
                item.before[address] = change(item.before[address])
