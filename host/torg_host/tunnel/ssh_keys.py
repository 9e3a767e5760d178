"""A wallet's ed25519 key as the SSH key that it also is."""

from __future__ import annotations

import base64

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from solders.keypair import Keypair
from solders.pubkey import Pubkey

_SEED_BYTES = 32
# Ed25519 is both ends' own; the ciphers are those that the processor has instructions for; nothing is compressed twice.
ALGORITHMS = {
    "kex_algs": ["curve25519-sha256"],
    "encryption_algs": ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
    "signature_algs": ["ssh-ed25519"],
    "compression_algs": ["none"],
}


def private_ssh_key(keypair: Keypair) -> asyncssh.SSHKey:
    secret = Ed25519PrivateKey.from_private_bytes(bytes(keypair)[:_SEED_BYTES])
    return asyncssh.import_private_key(secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def public_ssh_key(address: str) -> asyncssh.SSHKey:
    """Of a wallet's address, base58."""
    parts = (b"ssh-ed25519", bytes(Pubkey.from_string(address)))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return asyncssh.import_public_key(f"ssh-ed25519 {base64.b64encode(blob).decode()}")
