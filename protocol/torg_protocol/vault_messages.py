"""The two messages that the on-chain vault program checks, byte for byte as chain/program/SPEC.md states them.

    cap    domain "torg-cap-v1"   (16, zero-padded) | chain id (32) | vault (32) | cap u64 | valid_until i64      = 96 bytes
    order  domain "torg-order-v1" (16, zero-padded) | chain id (32) | vault (32) | sha256 of the arguments (32)   = 112 bytes

The chain id is the genesis hash, so that a message for one cluster is worth nothing on another. Integers are little-endian;
`valid_until` is the chain's own unix time in seconds.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

CAP_DOMAIN = b"torg-cap-v1".ljust(16, b"\0")
ORDER_DOMAIN = b"torg-order-v1".ljust(16, b"\0")


@dataclass(frozen=True, slots=True)
class CapMessage:
    """At most `cap` base units may ever leave this vault, by captures until `valid_until`."""

    chain_id: bytes
    vault: bytes
    cap: int
    valid_until: int

    def to_bytes(self) -> bytes:
        return CAP_DOMAIN + self.chain_id + self.vault + struct.pack("<Qq", self.cap, self.valid_until)


@dataclass(frozen=True, slots=True)
class OrderMessage:
    """Pay these amounts to these token accounts, if exactly `expected_settled` was paid before. Anybody may submit it."""

    chain_id: bytes
    vault: bytes
    expected_settled: int
    payees: tuple[tuple[bytes, int], ...]
    root: bytes

    def arguments_hash(self) -> bytes:
        amounts = b"".join(struct.pack("<Q", amount) for _, amount in self.payees)
        keys = b"".join(key for key, _ in self.payees)
        header = struct.pack("<QB", self.expected_settled, len(self.payees))
        return hashlib.sha256(header + amounts + keys + self.root).digest()

    def to_bytes(self) -> bytes:
        return ORDER_DOMAIN + self.chain_id + self.vault + self.arguments_hash()


def sign_message(keypair: Keypair, message: CapMessage | OrderMessage) -> Signature:
    return keypair.sign_message(message.to_bytes())


def verify_message(message: CapMessage | OrderMessage, signature: str, signer: str) -> bool:
    """As the chain's precompile would decide it. False also for keys and signatures that cannot be parsed."""
    try:
        return Signature.from_string(signature).verify(Pubkey.from_string(signer), message.to_bytes())
    except ValueError:
        return False
