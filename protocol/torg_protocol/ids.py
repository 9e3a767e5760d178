"""Typed ids. A prefix says what an id names; the rest sorts by creation time (48 bits of ms, 80 random bits)."""

from __future__ import annotations

import re
from typing import NewType

JobId = NewType("JobId", str)
LeaseId = NewType("LeaseId", str)
QuoteId = NewType("QuoteId", str)
# Parties are named by their ed25519 public key, base58, which is also their Solana wallet.
NodeId = NewType("NodeId", str)
AccountId = NewType("AccountId", str)
VaultAddress = NewType("VaultAddress", str)
# The name and the checksum of a blob at once: "sha256:" and 64 hex digits, of its bytes; or "pieces:" and 64 hex digits, of the list of the
# pieces that it is (torg_protocol.pieces).
Digest = NewType("Digest", str)

DIGEST = r"^(sha256|pieces):[0-9a-f]{64}$"
_IS_DIGEST = re.compile(r"(sha256|pieces):[0-9a-f]{64}")

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, now_ms: int, random_bits: int) -> str:
    """`prefix_` and 26 characters, ULID layout. `random_bits` is a fresh random integer below 2**80."""
    return _written(prefix, (now_ms & (2**48 - 1)) << 80 | (random_bits & (2**80 - 1)))


class Ids:
    """Ids of one process, each greater than all before: also within one millisecond, and while the clock stands an hour back. Of the 80 bits
    after the milliseconds the first 16 count, 64 are random."""

    def __init__(self) -> None:
        self._newest = 0

    def new(self, prefix: str, now_ms: int, random_bits: int) -> str:
        """`random_bits` is a fresh random integer below 2**64."""
        self._newest = max((now_ms & (2**48 - 1)) << 16, self._newest + 1)
        return _written(prefix, self._newest << 64 | (random_bits & (2**64 - 1)))


def _written(prefix: str, number: int) -> str:
    characters = [_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(characters)}"


def is_digest(text: str) -> bool:
    return _IS_DIGEST.fullmatch(text) is not None


def is_digest_of_bytes(text: str) -> bool:
    return is_digest(text) and not names_pieces(text)


def names_pieces(digest: str) -> bool:
    return digest.startswith("pieces:")


def hex_of(digest: str) -> str:
    """The 64 hex digits."""
    return digest.partition(":")[2]
