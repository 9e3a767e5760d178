"""Sealing to nodes with age: a party's wallet key, in its OpenSSH form, is its age recipient. There is no second key to publish or to trust.

age keeps what it encrypts apart from whatever the key signs: it derives an X25519 secret and a file key of its own.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from pathlib import Path

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
    return bytes(pyrage.encrypt(data, _wallets(recipients)))


def unseal(sealed: bytes, keypair: Keypair) -> bytes:
    """Raises Invalid `cannot_unseal`: sealed to others, cut, or changed. The error holds nothing of the content."""
    try:
        return bytes(pyrage.decrypt(sealed, [pyrage.ssh.Identity.from_buffer(ssh_private_key(keypair))]))
    except (pyrage.DecryptError, ValueError):
        raise _cannot_unseal() from None


def new_key() -> tuple[str, str]:
    """A key of its own, for one job: the private half (`AGE-SECRET-KEY-1...`) and the public one (`age1...`)."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def seal_file(source: Path, target: Path, *, wallets: Sequence[str] = (), keys: Sequence[str] = ()) -> None:
    """Encrypts a file of any size, in constant memory: readable by the holder of any of these wallets, or of these keys (`age1...`).
    Blocks; other threads go on meanwhile. Raises Invalid `recipient_invalid`."""
    try:
        recipients = [pyrage.x25519.Recipient.from_str(key) for key in keys]
    except pyrage.RecipientError as error:
        raise Invalid("not a key that one can seal to", code="recipient_invalid", field="sealed.recipient") from error
    with source.open("rb") as plain, target.open("wb") as sealed:  # not by path: that would hold all other threads up
        pyrage.encrypt_io(plain, sealed, [*_wallets(wallets), *recipients])


def unseal_file(source: Path, target: Path, identity: Keypair | str) -> None:
    """Decrypts with a wallet, or with a private half of `new_key`. Blocks, as above. Raises Invalid `cannot_unseal`, and leaves no target."""
    try:
        if isinstance(identity, Keypair):
            key = pyrage.ssh.Identity.from_buffer(ssh_private_key(identity))
        else:
            key = pyrage.x25519.Identity.from_str(identity)
        with source.open("rb") as sealed, target.open("wb") as plain:
            pyrage.decrypt_io(sealed, plain, [key])
    except BaseException as error:
        target.unlink(missing_ok=True)
        # Of what was changed in its middle the library says so by an OSError that is none of the system's.
        is_closed = isinstance(error, pyrage.DecryptError | pyrage.IdentityError | ValueError)
        if is_closed or (isinstance(error, OSError) and error.errno is None):
            raise _cannot_unseal() from None
        raise


def _cannot_unseal() -> Invalid:
    return Invalid("it is not sealed to this key, or was changed", code="cannot_unseal", field="sealed")


def _wallets(recipients: Sequence[str]) -> list[pyrage.ssh.Recipient]:
    keys = []
    for recipient in recipients:
        try:
            keys.append(pyrage.ssh.Recipient.from_str(ssh_public_key(Pubkey.from_string(recipient))))
        except (ValueError, pyrage.RecipientError) as error:
            raise Invalid(
                "not a key that one can seal to", code="recipient_invalid", field="node", value=recipient
            ) from error
    return keys


def ssh_private_key(keypair: Keypair) -> bytes:
    """The same key in OpenSSH's format, not encrypted: for memory only."""
    secret = Ed25519PrivateKey.from_private_bytes(bytes(keypair)[:_SEED_BYTES])
    return secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _public_blob(key: Pubkey) -> bytes:
    return _text(_ALGORITHM) + _text(bytes(key))


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
