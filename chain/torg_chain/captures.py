"""Captures that landed: which orders of a vault the chain has carried out, whoever submitted them.

An order pays what it says whoever lands it. So nobody's books may rest on *who sent the transaction*; they rest on what is found here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

_CAPTURE = 3  # first byte of the instruction's data
_FIXED_ACCOUNTS = 6  # before the payees
_HEADER = struct.Struct("<BBBQB")


@dataclass(frozen=True, slots=True)
class CaptureArguments:
    """What an order orders. `payees`: token accounts and base units, in the order's sequence."""

    vault: str
    expected_settled: int
    payees: tuple[tuple[str, int], ...]
    root: bytes


@dataclass(frozen=True, slots=True)
class LandedCapture:
    signature: str
    arguments: CaptureArguments
    skipped: frozenset[int]  # indices of payees that could not be paid
    slot: int

    @property
    def paid(self) -> int:
        return sum(amount for index, (_, amount) in enumerate(self.arguments.payees) if index not in self.skipped)


def captures_in(
    raw: bytes, program_id: Pubkey, vault: str, loaded: Sequence[Pubkey] = ()
) -> tuple[CaptureArguments, ...]:
    """Captures of one vault that a transaction's top level carries. `loaded`: accounts that its lookup tables brought."""
    message = VersionedTransaction.from_bytes(raw).message
    keys = [*message.account_keys, *loaded]
    found = []
    for item in message.instructions:
        data, accounts = bytes(item.data), [keys[index] for index in bytes(item.accounts)]
        if keys[item.program_id_index] != program_id or data[:1] != bytes([_CAPTURE]) or str(accounts[0]) != vault:
            continue
        _, _, _, expected, count = _HEADER.unpack_from(data)
        amounts = struct.unpack_from(f"<{count}Q", data, _HEADER.size)
        root = data[_HEADER.size + 8 * count :][:32]
        payees = zip(map(str, accounts[_FIXED_ACCOUNTS:]), amounts, strict=True)
        found.append(CaptureArguments(vault, expected, tuple(payees), root))
    return tuple(found)


def skipped_in(return_data: bytes) -> frozenset[int]:
    """The program returns a bit map of the payees it left out; clusters cut trailing zero bytes off."""
    mask = int.from_bytes(return_data, "little")
    return frozenset(index for index in range(16) if mask >> index & 1)
