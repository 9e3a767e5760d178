"""The key that signs caps, made on first use."""

from __future__ import annotations

import contextlib

from solders.keypair import Keypair

from torg.config import ClientConfig
from torg_chain.errors import WalletError
from torg_chain.wallet import create_keypair, load_keypair


def session_key(config: ClientConfig) -> Keypair:
    path = config.session_key_path
    if not path.exists():
        with contextlib.suppress(WalletError):  # another process has just made it
            return create_keypair(path)
    return load_keypair(path)
