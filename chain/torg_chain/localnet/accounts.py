"""Which accounts a transaction names and may change: its own keys, then what it loads from address lookup tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solders.account import Account
from solders.message import Message, MessageV0, MessageV1
from solders.pubkey import Pubkey

_TABLE_META_SIZE = 56  # of a lookup table's account; addresses of 32 bytes follow


class NoSuchTable(Exception):
    """A transaction loads from a lookup table that is not there, or does not go that far."""


@dataclass(frozen=True, slots=True)
class TransactionAccounts:
    """`keys` in the order in which instructions number them: static, loaded writable, loaded readonly."""

    static: tuple[Pubkey, ...]
    writable_static: frozenset[Pubkey]
    loaded_writable: tuple[Pubkey, ...]
    loaded_readonly: tuple[Pubkey, ...]

    @property
    def keys(self) -> list[Pubkey]:
        return [*self.static, *self.loaded_writable, *self.loaded_readonly]

    @property
    def writable(self) -> list[Pubkey]:
        return [*(key for key in self.static if key in self.writable_static), *self.loaded_writable]


def accounts_of(
    message: Message | MessageV0 | MessageV1, account_at: Callable[[Pubkey], Account | None]
) -> TransactionAccounts:
    """Raises NoSuchTable."""
    static, header = tuple(message.account_keys), message.header
    signed = header.num_required_signatures
    writable = frozenset(
        key
        for number, key in enumerate(static)
        if number < signed - header.num_readonly_signed_accounts
        or signed <= number < len(static) - header.num_readonly_unsigned_accounts
    )
    loaded_writable: list[Pubkey] = []
    loaded_readonly: list[Pubkey] = []
    for lookup in message.address_table_lookups if isinstance(message, MessageV0) else []:
        table = account_at(lookup.account_key)
        addresses = bytes(table.data)[_TABLE_META_SIZE:] if table is not None else b""
        loaded_writable += [_entry(addresses, number) for number in lookup.writable_indexes]
        loaded_readonly += [_entry(addresses, number) for number in lookup.readonly_indexes]
    return TransactionAccounts(static, writable, tuple(loaded_writable), tuple(loaded_readonly))


def _entry(addresses: bytes, number: int) -> Pubkey:
    if len(addresses) < 32 * (number + 1):
        raise NoSuchTable
    return Pubkey(addresses[32 * number : 32 * (number + 1)])
