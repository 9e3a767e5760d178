"""Which request signatures were used, of a marketplace that is one process: a signed request is good once, also after a restart.

A file of its own, written without waiting for the disk: it must survive a killed process, not a power cut (after one, signatures of the
last seconds could be replayed within their five minutes, with effects that idempotency keys and states bound).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from torg_protocol.errors import Unauthorized
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, VerifiedSignature

_FORGET_EVERY = 1_000


class NonceStore:
    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS nonces (key TEXT, nonce TEXT, created_s INTEGER, PRIMARY KEY (key, nonce)) WITHOUT ROWID"
        )
        self._writes = 0

    def use(self, signature: VerifiedSignature) -> None:
        """Raises Unauthorized `signature_replayed` the second time. What is forgotten is too old to be believed, whatever this one's clock."""
        try:
            self._db.execute(
                "INSERT INTO nonces VALUES (?, ?, ?)", (signature.key, signature.nonce, signature.created_s)
            )
        except sqlite3.IntegrityError:
            raise replayed(signature.nonce) from None
        self._writes += 1
        if self._writes % _FORGET_EVERY == 0:
            self._db.execute("DELETE FROM nonces WHERE created_s < ?", (signature.created_s - 2 * MAX_CLOCK_SKEW_S,))

    def close(self) -> None:
        self._db.close()


def replayed(nonce: str) -> Unauthorized:
    return Unauthorized(
        "this signature was used before",
        code="signature_replayed",
        field="nonce",
        value=nonce,
        hint="sign each request anew",
    )
