"""Keys on disk: solana-keygen's format (a JSON array of 64 numbers), mode 0600, never printed."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.errors import WalletError

PHRASE_PATH = "m/44'/501'/0'/0'"  # where wallet apps keep their first Solana account
_PATH = re.compile(r"m(/[0-9]{1,10}')+")


def create_keypair(path: Path) -> Keypair:
    """A new random key. Raises WalletError `wallet_exists` rather than overwrite."""
    keypair = Keypair()
    save_keypair(keypair, path)
    return keypair


def save_keypair(keypair: Keypair, path: Path) -> None:
    """Whole or not at all: nobody ever reads half a key, also after a crash. Raises WalletError `wallet_exists`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".key-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(list(bytes(keypair))))
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        raise WalletError(
            "there is a key already", code="wallet_exists", field="path", value=str(path), hint="choose another path"
        ) from None
    finally:
        Path(name).unlink()


def load_keypair(path: Path) -> Keypair:
    """Raises WalletError: wallet_not_found, wallet_readable_by_others or wallet_invalid. The message never holds the key."""
    try:
        raw = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise WalletError(
            f"cannot read the key: {error.strerror}",
            code="wallet_not_found",
            field="path",
            value=str(path),
            hint="make one: torg wallet new, or torg_chain.wallet.save_keypair; without a wallet, torg takes an API key: TORG_API_KEY",
        ) from None
    if mode & 0o077:
        raise WalletError(
            "other users of this machine can read this key",
            code="wallet_readable_by_others",
            field="path",
            value=str(path),
            hint=f"chmod 600 {path}",
        )
    return parse_secret(_as_text(raw), str(path))


def import_keypair(source: Path, target: Path) -> Keypair:
    """Copies a solana-keygen file or a file with a base58 64-byte secret into our own place, mode 0600."""
    try:
        raw = source.read_bytes()
    except OSError as error:
        raise WalletError(
            f"cannot read the key: {error.strerror}", code="wallet_not_found", field="path", value=str(source)
        ) from None
    keypair = parse_secret(_as_text(raw), str(source))
    save_keypair(keypair, target)
    return keypair


def keypair_from_phrase(phrase: str, *, derivation_path: str | None = PHRASE_PATH, passphrase: str = "") -> Keypair:
    """From a BIP-39 seed phrase. With the path of wallet apps by default; None is solana-keygen's way, without a path.

    The words' own checksum is checked: a wrong word never becomes another, empty wallet. Raises WalletError `phrase_invalid`,
    `derivation_path_invalid`; neither message holds a word of it.
    """
    from mnemonic import Mnemonic

    words = " ".join(phrase.lower().split())
    if not Mnemonic("english").check(words):
        raise WalletError(
            "not a seed phrase: a word is wrong, missing or in the wrong place",
            code="phrase_invalid",
            field="phrase",
            value=f"{len(words.split())} words",
            hint="12, 15, 18, 21 or 24 English words of BIP-39, in their order",
        )
    seed = Mnemonic.to_seed(words, passphrase)
    if derivation_path is None:
        return Keypair.from_seed(seed[:32])
    if not _PATH.fullmatch(derivation_path):
        raise WalletError(
            "not a derivation path for Solana keys: every step must be hardened",
            code="derivation_path_invalid",
            field="derivation_path",
            value=derivation_path,
            hint=f"like {PHRASE_PATH}",
        )
    return Keypair.from_seed_and_derivation_path(seed, derivation_path)


def parse_secret(text: str, where: str) -> Keypair:
    """A JSON array of 64 numbers whose halves match, or a base58 string of 64 bytes."""
    text = text.strip()
    try:
        return Keypair.from_json(text) if text.startswith("[") else Keypair.from_base58_string(text)
    except ValueError:
        # Neither the text nor the library's message is repeated: they may hold the secret.
        raise WalletError(
            "this is not a Solana key", field="path", value=where, hint="expected a JSON array of 64 numbers, or base58"
        ) from None


def _as_text(raw: bytes) -> str:
    """Never fails: an exception about undecodable bytes would hold them, and they may be a raw key."""
    return raw.decode("ascii", errors="replace")


def wallet_address(text: str) -> str:
    """As it is written everywhere. Raises ValueError."""
    try:
        return str(Pubkey.from_string(text))
    except ValueError:
        raise ValueError("not a wallet's address: base58, 32 bytes") from None
