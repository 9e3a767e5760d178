"""The client's own books: which jobs are open under which vault, and what the ended ones cost.

From these alone the client computes the cap that it signs: the final amounts of ended jobs plus the maxima of open ones. What
a marketplace says it is owed is never a reason to sign more. SQLite with immediate transactions: two terminals that submit at
once get two caps that both cover both jobs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torg_protocol.errors import NotFound

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vaults (
    address TEXT PRIMARY KEY, marketplace TEXT NOT NULL, salt INTEGER NOT NULL, grace_s INTEGER NOT NULL,
    signer TEXT NOT NULL, opened_at_ms INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS jobs (
    idempotency_key TEXT PRIMARY KEY, job_id TEXT UNIQUE, vault TEXT NOT NULL REFERENCES vaults(address), name TEXT NOT NULL,
    max_amount INTEGER NOT NULL, final_amount INTEGER, submitted_at_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS receipts (lease_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, amount INTEGER NOT NULL, body TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class VaultEntry:
    address: str
    marketplace: str
    salt: int
    grace_s: int
    signer: str


class Journal:
    """Cheap to open; every method is one transaction. Safe for several processes on one file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        with self._transaction() as db:
            db.executescript(_SCHEMA)

    def add_vault(self, entry: VaultEntry, now_ms: int) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO vaults (address, marketplace, salt, grace_s, signer, opened_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
                (entry.address, entry.marketplace, entry.salt, entry.grace_s, entry.signer, now_ms),
            )

    def close_vault(self, address: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE vaults SET closed = 1 WHERE address = ?", (address,))

    def vaults(self, marketplace: str) -> list[VaultEntry]:
        """Open vaults at one marketplace (by its public key), newest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT address, marketplace, salt, grace_s, signer FROM vaults WHERE marketplace = ? AND closed = 0"
                " ORDER BY opened_at_ms DESC",
                (marketplace,),
            ).fetchall()
        return [VaultEntry(*row) for row in rows]

    def vault(self, marketplace: str, address: str | None = None) -> VaultEntry:
        """The named vault, or the newest. Raises NotFound `no_vault`."""
        found = [entry for entry in self.vaults(marketplace) if address in (None, entry.address)]
        if not found:
            raise NotFound(
                "no open vault at this marketplace",
                code="no_vault",
                field="vault",
                value=address,
                hint="open one: torg vault open --deposit 5",
            )
        return found[0]

    def reserve(self, *, vault: str, idempotency_key: str, name: str, max_amount: int, now_ms: int) -> int:
        """Enters a job before it is submitted; returns the cap that covers it and everything else that is open.

        Safe to repeat with the same key: a retry after a crash gets a cap that covers the job once.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO jobs (idempotency_key, vault, name, max_amount, submitted_at_ms) VALUES (?, ?, ?, ?, ?)",
                (idempotency_key, vault, name, max_amount, now_ms),
            )
            return self._cap(db, vault)

    def cap(self, vault: str) -> int:
        with self._transaction() as db:
            return self._cap(db, vault)

    def submitted(self, idempotency_key: str, job_id: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE jobs SET job_id = ? WHERE idempotency_key = ?", (job_id, idempotency_key))

    def refused(self, idempotency_key: str) -> None:
        """The marketplace answered that it did not take the job: its maximum no longer counts."""
        with self._transaction() as db:
            db.execute("DELETE FROM jobs WHERE idempotency_key = ? AND job_id IS NULL", (idempotency_key,))

    def add_receipt(self, *, lease_id: str, job_id: str, amount: int, body: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)", (lease_id, job_id, amount, body))

    def ended(self, job_id: str) -> None:
        """The job is over and all its receipts are in: from now on it counts with what they say, not with its maximum."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET final_amount = (SELECT COALESCE(SUM(amount), 0) FROM receipts WHERE job_id = ?) WHERE job_id = ?",
                (job_id, job_id),
            )

    def open_job_ids(self, vault: str) -> list[str]:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT job_id FROM jobs WHERE vault = ? AND final_amount IS NULL AND job_id IS NOT NULL", (vault,)
            ).fetchall()
        return [row[0] for row in rows]

    def adopt(self, *, vault: str, job_id: str, name: str, max_amount: int, now_ms: int) -> None:
        """Enters a job that this journal does not know (it was submitted from another computer)."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO jobs (idempotency_key, job_id, vault, name, max_amount, submitted_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
                (f"adopted:{job_id}", job_id, vault, name, max_amount, now_ms),
            )

    def _cap(self, db: sqlite3.Connection, vault: str) -> int:
        row = db.execute(
            "SELECT COALESCE(SUM(COALESCE(final_amount, max_amount)), 0) FROM jobs WHERE vault = ?", (vault,)
        ).fetchone()
        return int(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            if connection.in_transaction:
                connection.execute("COMMIT")
        finally:
            connection.close()
