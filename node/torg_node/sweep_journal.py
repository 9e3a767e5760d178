"""What the journal knows of sweeps. A sweep is written down, as the bytes that move it, before they leave: from then on it is followed until
the chain has decided, and no other one is begun meanwhile."""

from __future__ import annotations

import enum
import sqlite3
from dataclasses import dataclass

from torg_chain.transactions import SignedTransaction

SCHEMA = """
CREATE TABLE IF NOT EXISTS sweeps (
    number INTEGER PRIMARY KEY, wallet TEXT NOT NULL, amount INTEGER NOT NULL, at_ms INTEGER NOT NULL, signature TEXT NOT NULL, raw BLOB NOT NULL,
    last_valid_block_height INTEGER NOT NULL, state TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_open_sweep ON sweeps (state) WHERE state = 'sending';
"""


class SweepState(enum.StrEnum):
    SENDING = "sending"  # stored, perhaps sent; nobody can tell yet
    FINALIZED = "finalized"
    DEAD = "dead"  # its blockhash is dead and it never landed: nothing was moved
    FAILED = "failed"  # landed and refused: a fee was paid, nothing was moved


@dataclass(frozen=True, slots=True)
class SweepEntry:
    """`amount` in base units, `at_ms` when it was written down."""

    number: int
    to: str
    amount: int
    at_ms: int
    transaction: SignedTransaction
    state: SweepState


class SweepJournal:
    """Shares the journal's connection. Every method is one durable statement."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def next_number(self) -> int:
        return int(self._db.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM sweeps").fetchone()[0])

    def begin(self, number: int, to: str, amount: int, at_ms: int, transaction: SignedTransaction) -> SweepEntry:
        """Raises sqlite3.IntegrityError while another one is open."""
        last_valid = transaction.last_valid_block_height
        self._db.execute(
            "INSERT INTO sweeps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number, to, amount, at_ms, transaction.signature, transaction.raw, last_valid, SweepState.SENDING),
        )
        return SweepEntry(number, to, amount, at_ms, transaction, SweepState.SENDING)

    def end(self, number: int, state: SweepState) -> None:
        """Once: what the chain has decided stays."""
        self._db.execute(
            "UPDATE sweeps SET state = ? WHERE number = ? AND state = ?", (state, number, SweepState.SENDING)
        )

    def under_way(self) -> SweepEntry | None:
        found = self._entries("WHERE state = 'sending'", ())
        return found[0] if found else None

    def newest(self, limit: int) -> list[SweepEntry]:
        """Newest first."""
        return self._entries("ORDER BY number DESC LIMIT ?", (limit,))

    def newest_finalized(self) -> SweepEntry | None:
        found = self._entries("WHERE state = 'finalized' ORDER BY number DESC LIMIT 1", ())
        return found[0] if found else None

    def totals(self) -> dict[str, tuple[int, int]]:
        """By wallet: how many sweeps have arrived, and base units."""
        rows = self._db.execute(
            "SELECT wallet, COUNT(*), SUM(amount) FROM sweeps WHERE state = 'finalized' GROUP BY wallet ORDER BY MIN(number)"
        )
        return {str(wallet): (int(count), int(amount)) for wallet, count, amount in rows}

    def _entries(self, where: str, values: tuple[object, ...]) -> list[SweepEntry]:
        columns = "number, wallet, amount, at_ms, raw, signature, last_valid_block_height, state"
        rows = self._db.execute(f"SELECT {columns} FROM sweeps {where}", values).fetchall()  # noqa: S608 - constant clauses
        return [
            SweepEntry(row[0], row[1], row[2], row[3], SignedTransaction(row[4], row[5], row[6]), SweepState(row[7]))
            for row in rows
        ]
