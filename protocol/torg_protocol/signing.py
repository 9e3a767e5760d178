"""Ed25519 signatures over documents, verified exactly as the chain verifies them.

Only solders is used: other libraries accept small-order keys that the chain's precompile refuses, and what is accepted
off-chain must be acceptable on-chain. Every signed document starts with a tag and its kind, so that no signature over one
kind of thing can be read as a signature over another (HTTP requests start with a quote mark, vault messages with theirs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from torg_protocol.canonical import canonical_json

DOCUMENT_TAG = b"torg-doc-v1"


def document_bytes(kind: str, body: Mapping[str, Any]) -> bytes:
    return b"\n".join((DOCUMENT_TAG, kind.encode(), canonical_json(body)))


def sign_document(keypair: Keypair, kind: str, body: Mapping[str, Any]) -> str:
    """Base58 signature over the canonical form of `body` under the given kind."""
    return str(keypair.sign_message(document_bytes(kind, body)))


def verify_document(public_key: str, signature: str, kind: str, body: Mapping[str, Any]) -> bool:
    return verify_bytes(public_key, signature, document_bytes(kind, body))


def verify_bytes(public_key: str, signature: str, message: bytes) -> bool:
    """False for a wrong signature and for keys or signatures that cannot be parsed."""
    try:
        return Signature.from_string(signature).verify(Pubkey.from_string(public_key), message)
    except ValueError:
        return False
