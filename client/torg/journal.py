"""The client's own books: which jobs are open under which vault, and what the ended ones cost.

From these alone the client computes the cap that it signs: the final amounts of ended jobs plus the maxima of open ones. What
a marketplace says it is owed is never a reason to sign more: an ended job counts with its receipts, but never with more than
its agreed maximum. SQLite with immediate transactions: two terminals that submit at once get caps of which the later covers both.

A job is entered *before* it is submitted. After a crash in between, nobody here knows whether the marketplace has it; such a
reservation keeps counting with its maximum until that is settled (see `torg.submission`).
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torg.journal_schema import migrate
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError, Unavailable


@dataclass(frozen=True, slots=True)
class VaultEntry:
    address: str
    marketplace: str  # public key
    salt: int
    grace_s: int
    signer: str


@dataclass(frozen=True, slots=True)
class JobEntry:
    """`job_id` None: submitted, perhaps; no answer was seen. `final_amount` None: open."""

    idempotency_key: str
    job_id: str | None
    vault: str
    name: str
    max_amount: int
    final_amount: int | None
    submitted_at_ms: int
    spec_digest: str | None
    dead_after_ms: int | None  # from then on the marketplace refuses this submission, if it has not taken it


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    lease_id: str
    job_id: str
    amount: int
    body: str  # JSON of the SignedReceipt


_LEAST_ROOM_BYTES = 65_536
_JOB = "idempotency_key, job_id, vault, name, max_amount, final_amount, submitted_at_ms, spec_digest, dead_after_ms FROM jobs"
_VAULT = "address, marketplace, salt, grace_s, signer FROM vaults"


class Journal:
    """Cheap to open; every method is one transaction, so that a crash between two leaves books that hold. Safe for several
    processes on one file. Raises Conflict `journal_busy` and Invalid `journal_unreadable` for trouble with the file itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(self._connect()) as connection:
                migrate(connection)

    # --- vaults -----------------------------------------------------------------------------------------------------

    def add_vault(self, entry: VaultEntry, now_ms: int, *, opening: bool = False) -> None:
        """`opening`: entered before its transaction is sent, so that a deposit can never be in a vault that nobody here knows."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO vaults (address, marketplace, salt, grace_s, signer, opened_at_ms, opening)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET closed = 0, opening = excluded.opening",
                (entry.address, entry.marketplace, entry.salt, entry.grace_s, entry.signer, now_ms, int(opening)),
            )

    def vault_opened(self, address: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE vaults SET opening = 0 WHERE address = ?", (address,))

    def vault_never_opened(self, address: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM vaults WHERE address = ? AND opening = 1", (address,))

    def opening_vaults(self, marketplace: str) -> list[VaultEntry]:
        """Those whose opening transaction was sent, perhaps."""
        return self._vaults("marketplace = ? AND opening = 1", marketplace)

    def close_vault(self, address: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE vaults SET closed = 1 WHERE address = ?", (address,))

    def vaults(self, marketplace: str) -> list[VaultEntry]:
        """Open vaults at one marketplace (by its public key), newest first."""
        return self._vaults("marketplace = ? AND closed = 0 AND opening = 0", marketplace)

    def all_vaults(self, marketplace: str) -> list[VaultEntry]:
        """Closed ones too."""
        return self._vaults("marketplace = ? AND opening = 0", marketplace)

    def vault(self, marketplace: str, address: str | None = None) -> VaultEntry:
        """The named vault, or the newest. Raises NotFound: `no_vault`, or `vault_unknown` when the named one is not there."""
        known = self.vaults(marketplace)
        found = [entry for entry in known if address in (None, entry.address)]
        if found:
            return found[0]
        if known:
            raise NotFound(
                "this computer knows no such open vault",
                code="vault_unknown",
                field="vault",
                value=address,
                hint="it knows " + ", ".join(entry.address for entry in known),
            )
        raise NotFound(
            "no open vault at this marketplace",
            code="no_vault",
            field="vault" if address else None,
            value=address,
            hint="open one: torg vault open --deposit 5",
        )

    def _vaults(self, condition: str, *values: object) -> list[VaultEntry]:
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_VAULT} WHERE {condition} ORDER BY opened_at_ms DESC, rowid DESC",
                values,
            ).fetchall()
        return [VaultEntry(*row) for row in rows]

    # --- jobs -------------------------------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        vault: str,
        idempotency_key: str,
        name: str,
        max_amount: int,
        now_ms: int,
        spec_digest: str | None = None,
        dead_after_ms: int | None = None,
    ) -> int:
        """Enters a job before it is submitted; returns the cap that covers it and everything else that is open.

        Safe to repeat with the same key: the job counts once, with the larger of the maxima that were agreed to.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO jobs (idempotency_key, vault, name, max_amount, submitted_at_ms, spec_digest, dead_after_ms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (idempotency_key) DO UPDATE SET"
                " max_amount = MAX(max_amount, excluded.max_amount),"
                " dead_after_ms = MAX(COALESCE(dead_after_ms, 0), COALESCE(excluded.dead_after_ms, 0))"
                " WHERE job_id IS NULL",
                (idempotency_key, vault, name, max_amount, now_ms, spec_digest, dead_after_ms),
            )
            return self._cap(db, vault)

    def cap(self, vault: str) -> int:
        with self._transaction() as db:
            return self._cap(db, vault)

    def entry(self, idempotency_key: str) -> JobEntry | None:
        found = self._jobs("idempotency_key = ?", idempotency_key)
        return found[0] if found else None

    def jobs(self, vault: str) -> list[JobEntry]:
        """All of a vault, oldest first."""
        return self._jobs("vault = ?", vault)

    def newest_jobs(self, limit: int) -> list[JobEntry]:
        """Of all vaults, newest first; only those that the marketplace has."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_JOB} WHERE job_id IS NOT NULL ORDER BY submitted_at_ms DESC, rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [JobEntry(*row) for row in rows]

    def unanswered(self, vault: str) -> list[JobEntry]:
        """Reservations of which nobody here knows whether they became jobs."""
        return self._jobs("vault = ? AND job_id IS NULL", vault)

    def open_job_ids(self, vault: str) -> list[str]:
        jobs = self._jobs("vault = ? AND final_amount IS NULL AND job_id IS NOT NULL", vault)
        return [str(job.job_id) for job in jobs]

    def submitted(self, idempotency_key: str, job_id: str, max_amount: int | None = None) -> None:
        """The marketplace has it. `max_amount`: what it holds for it, which may lower what counts here, never raise it."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET job_id = ?, max_amount = MIN(max_amount, ?) WHERE idempotency_key = ?"
                " AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = ?)",
                (job_id, 2**62 if max_amount is None else max_amount, idempotency_key, job_id),
            )

    def raise_maximum(self, job_id: str, max_amount: int) -> int | None:
        """Before a job is extended; returns what it counted with until now. None: this journal does not know it, or it has ended."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT max_amount FROM jobs WHERE job_id = ? AND final_amount IS NULL", (job_id,)
            ).fetchone()
            db.execute(
                "UPDATE jobs SET max_amount = MAX(max_amount, ?) WHERE job_id = ? AND final_amount IS NULL",
                (max_amount, job_id),
            )
        return None if row is None else int(row[0])

    def lower_maximum(self, job_id: str, max_amount: int) -> None:
        """The marketplace has refused to extend it: it counts with what it did before."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET max_amount = ? WHERE job_id = ? AND max_amount > ?", (max_amount, job_id, max_amount)
            )

    def refused(self, idempotency_key: str) -> None:
        """The marketplace has not taken the job and never will: its maximum no longer counts."""
        with self._transaction() as db:
            db.execute("DELETE FROM jobs WHERE idempotency_key = ? AND job_id IS NULL", (idempotency_key,))

    def adopt(self, *, vault: str, job_id: str, name: str, max_amount: int, now_ms: int) -> None:
        """Enters a job that this journal does not know (it was submitted from another computer). Only when the user says so."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO jobs (idempotency_key, job_id, vault, name, max_amount, submitted_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
                (f"adopted:{job_id}", job_id, vault, name, max_amount, now_ms),
            )

    def ended(self, job_id: str) -> None:
        """The job is over and all its receipts are in: from now on it counts with what they say, and never with more than its
        maximum."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET final_amount = MIN(max_amount,"
                " (SELECT COALESCE(SUM(amount), 0) FROM receipts WHERE receipts.job_id = jobs.job_id)) WHERE job_id = ?",
                (job_id,),
            )

    # --- receipts ---------------------------------------------------------------------------------------------------

    def add_receipt(self, *, lease_id: str, job_id: str, amount: int, body: str) -> None:
        """Keeps a verified receipt; a later copy of the same one (with the node's signature, say) replaces it.

        Raises Conflict `receipt_contradiction` when another amount or job was receipted for this lease before.
        """
        with self._transaction() as db:
            row = db.execute("SELECT job_id, amount FROM receipts WHERE lease_id = ?", (lease_id,)).fetchone()
            if row is not None and row != (job_id, amount):
                raise Conflict(
                    "the marketplace has signed two different receipts for one lease",
                    code="receipt_contradiction",
                    field="lease_id",
                    value=lease_id,
                    hint=f"the first, of {row[1]} base units, is kept in {self._path}: together they prove it",
                )
            db.execute(
                "INSERT INTO receipts (lease_id, job_id, amount, body) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (lease_id) DO UPDATE SET body = excluded.body",
                (lease_id, job_id, amount, body),
            )

    def receipts(self, job_id: str | None = None) -> list[StoredReceipt]:
        """All that are kept, or a job's, in the order in which they came."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT lease_id, job_id, amount, body FROM receipts WHERE ? IS NULL OR job_id = ? ORDER BY rowid",
                (job_id, job_id),
            ).fetchall()
        return [StoredReceipt(*row) for row in rows]

    # --- parts ------------------------------------------------------------------------------------------------------

    def _jobs(self, condition: str, *values: object) -> list[JobEntry]:
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_JOB} WHERE {condition} ORDER BY submitted_at_ms, rowid",
                values,
            ).fetchall()
        return [JobEntry(*row) for row in rows]

    def _cap(self, db: sqlite3.Connection, vault: str) -> int:
        row = db.execute(
            "SELECT COALESCE(SUM(COALESCE(final_amount, max_amount)), 0) FROM jobs WHERE vault = ?", (vault,)
        ).fetchone()
        return int(row[0])

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=20, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained(), closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # without it, closing rolls back

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise self._unreadable(error) from error
            raise Conflict(
                "another process keeps the journal locked",
                code="journal_busy",
                field="journal",
                value=str(self._path),
                hint="try again when the other torg command has ended",
            ) from error
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> TorgError:
        if _has_no_room(self._path.parent, error):
            return Unavailable(
                f"the journal cannot be written: {error}",
                code="disk_full",
                field="journal",
                value=str(self._path),
                hint="make room on its disk and try again; what is in it is safe",
            )
        return Invalid(
            f"the journal cannot be used: {error}",
            code="journal_unreadable",
            field="journal",
            value=str(self._path),
            hint="mend it, or move it away: `torg vault add` and `torg vault adopt` then enter vaults and open jobs anew",
        )


def _has_no_room(folder: Path, error: Exception) -> bool:
    """SQLite says "disk I/O error" where its log cannot grow."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    try:
        return "full" in str(error) or shutil.disk_usage(folder).free < _LEAST_ROOM_BYTES
    except OSError:
        return False
