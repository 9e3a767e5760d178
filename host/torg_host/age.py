"""Sealing to nodes with age: a party's wallet key, in its OpenSSH form, is its age recipient. There is no second key to publish or to trust.

age keeps what it encrypts apart from whatever the key signs: it derives an X25519 secret and a file key of its own.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_protocol.errors import Invalid

_ALGORITHM = b"ssh-ed25519"
_SEED_BYTES = 32


def ssh_public_key(key: Pubkey) -> str:
    """As OpenSSH writes it (RFC 8709)."""
    return f"ssh-ed25519 {base64.b64encode(_public_blob(key)).decode()}"


def seal(data: bytes, recipients: Sequence[str]) -> bytes:
    """Readable by the holder of any of these wallet keys. Raises Invalid `recipient_invalid` for what is no such key."""
    keys = []
    for recipient in recipients:
        try:
            keys.append(pyrage.ssh.Recipient.from_str(ssh_public_key(Pubkey.from_string(recipient))))
        except (ValueError, pyrage.RecipientError) as error:
            raise Invalid(
                "not a key that one can seal to", code="recipient_invalid", field="node", value=recipient
            ) from error
    return bytes(pyrage.encrypt(data, keys))


def unseal(sealed: bytes, keypair: Keypair) -> bytes:
    """Raises Invalid `cannot_unseal`: sealed to others, cut, or changed. The error holds nothing of the content."""
    try:
        return bytes(pyrage.decrypt(sealed, [pyrage.ssh.Identity.from_buffer(ssh_private_key(keypair))]))
    except (pyrage.DecryptError, ValueError):
        raise Invalid("it is not sealed to this key, or was changed", code="cannot_unseal", field="sealed") from None


def ssh_private_key(keypair: Keypair) -> bytes:
    """The same key in OpenSSH's format, not encrypted: for memory only."""
    secret = Ed25519PrivateKey.from_private_bytes(bytes(keypair)[:_SEED_BYTES])
    return secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _public_blob(key: Pubkey) -> bytes:
    return _text(_ALGORITHM) + _text(bytes(key))


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
