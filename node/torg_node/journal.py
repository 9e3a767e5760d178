"""What this node must not forget: its leases, what it said about them, and what it was told.

SQLite, one writer. Everything is written down before it is done, so that an agent that was killed goes on where it was: containers are
found again by their handle, events that nobody acknowledged are sent again, nothing is started twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from torg_node import sweep_journal, task_journal
from torg_node.durable import exclusively, open_durable
from torg_node.executors.port import Handle
from torg_node.old_leases import forget_old_leases
from torg_node.sweep_journal import SweepJournal
from torg_node.task_journal import TaskJournal
from torg_protocol.caps import SignedOrder
from torg_protocol.ids import LeaseId
from torg_protocol.messages import LeaseEvent, LeaseEventBody, SignedGrant
from torg_protocol.refunds import SignedRefund
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import SignedReceipt, SignedUsage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    lease_id TEXT PRIMARY KEY, grant_json TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, handle_json TEXT, starting INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0, granted_at_ms INTEGER NOT NULL, receipt_json TEXT);
CREATE TABLE IF NOT EXISTS events (
    lease_id TEXT NOT NULL, sequence INTEGER NOT NULL, event_json TEXT NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (lease_id, sequence)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_undecided ON leases (lease_id) WHERE done = 0 OR receipt_json IS NULL;
CREATE INDEX IF NOT EXISTS events_untold ON events (lease_id, sequence) WHERE acknowledged = 0;
CREATE TABLE IF NOT EXISTS usage (
    lease_id TEXT NOT NULL, sequence INTEGER NOT NULL, signed_json TEXT NOT NULL, PRIMARY KEY (lease_id, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS earnings (
    lease_id TEXT NOT NULL, sequence INTEGER NOT NULL, vault TEXT NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (lease_id, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS captures (
    signature TEXT NOT NULL, vault TEXT NOT NULL, settled_until INTEGER NOT NULL, paid INTEGER NOT NULL,
    PRIMARY KEY (vault, settled_until)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (
    vault TEXT PRIMARY KEY, expected_settled INTEGER NOT NULL, order_json TEXT NOT NULL, kept_at_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refunds (
    refund_id TEXT PRIMARY KEY, lease_id TEXT NOT NULL, vault TEXT NOT NULL, amount INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    signed_json TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (lease_id TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (lease_id, name)) WITHOUT ROWID;
"""

_VAULT_OF = "json_extract(grant_json, '$.grant.commitment.vault')"


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """`starting`: a start was begun, so a container of this lease may exist. `done`: nothing of it is left on this host."""

    signed: SignedGrant
    state: LeaseState
    reason: EndReason | None
    handle: Handle | None
    starting: bool
    done: bool
    receipt: SignedReceipt | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a grant was taken, and if not, why: a stable code, and words."""

    lease_id: LeaseId
    at_ms: int
    taken: bool
    code: str
    detail: str


def is_disk_full(error: BaseException) -> bool:
    """Whether nothing was written because the host has no room."""
    if isinstance(error, sqlite3.OperationalError):
        return str(getattr(error, "sqlite_errorname", "")).startswith(("SQLITE_FULL", "SQLITE_IOERR"))
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


class Journal:
    """Every method is one durable transaction; cheap enough for the event loop's thread."""

    def __init__(self, path: Path) -> None:
        self._db = open_durable(path, _SCHEMA + task_journal.SCHEMA + sweep_journal.SCHEMA)
        self._fill_earnings()
        self._sums: tuple[tuple[int, ...], dict[str, int]] | None = None
        self.tasks = TaskJournal(self._db)
        self.sweeps = SweepJournal(self._db)

    def close(self) -> None:
        self._db.close()

    def at_once(self) -> AbstractContextManager[None]:
        """What is written inside is written together or not at all."""
        return exclusively(self._db)

    def next_offer_sequence(self) -> int:
        """Rises by one at each call, over restarts."""
        self._db.execute("INSERT OR IGNORE INTO facts VALUES ('offer_sequence', '0')")
        self._db.execute("UPDATE facts SET value = CAST(value AS INTEGER) + 1 WHERE name = 'offer_sequence'")
        return int(self._db.execute("SELECT value FROM facts WHERE name = 'offer_sequence'").fetchone()[0])

    def set_offer_sequence(self, at_least: int) -> None:
        """After a lost journal the marketplace knows of newer offers than we do."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('offer_sequence', ?)", (str(at_least),))

    def set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def fact(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def facts_like(self, beginning: str) -> dict[str, str]:
        rows = self._db.execute("SELECT name, value FROM facts WHERE name GLOB ? || '*'", (beginning,))
        return {str(name): str(value) for name, value in rows}

    @property
    def is_paused(self) -> bool:
        """Whether its owner wants no further leases; holds over restarts."""
        return self.fact("paused") == "yes"

    def set_paused(self, paused: bool) -> bool:
        """False when it was so already."""
        changed = self.is_paused is not paused
        self.set_fact("paused", "yes" if paused else "no")
        return changed

    # --- leases -----------------------------------------------------------------------------------------------------

    def add_lease(self, signed: SignedGrant) -> bool:
        """False when it is known already: a grant may arrive more than once."""
        grant = signed.grant
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO leases (lease_id, grant_json, state, granted_at_ms) VALUES (?, ?, ?, ?)",
            (grant.lease_id, signed.model_dump_json(), LeaseState.GRANTED, grant.granted_at_ms),
        )
        return cursor.rowcount == 1

    def set_state(self, lease_id: LeaseId, state: LeaseState, reason: EndReason | None = None) -> None:
        self._db.execute(
            "UPDATE leases SET state = ?, reason = COALESCE(?, reason) WHERE lease_id = ?", (state, reason, lease_id)
        )

    def intend_start(self, lease_id: LeaseId) -> None:
        self._db.execute("UPDATE leases SET starting = 1 WHERE lease_id = ?", (lease_id,))

    def set_handle(self, lease_id: LeaseId, handle: Handle) -> None:
        self._db.execute("UPDATE leases SET handle_json = ? WHERE lease_id = ?", (json.dumps(asdict(handle)), lease_id))

    def finish(self, lease_id: LeaseId) -> None:
        self._db.execute("UPDATE leases SET done = 1 WHERE lease_id = ?", (lease_id,))

    def lease(self, lease_id: LeaseId) -> LeaseEntry | None:
        found = self._leases("WHERE lease_id = ?", (lease_id,))
        return found[0] if found else None

    def open_leases(self) -> list[LeaseEntry]:
        """Those that still need this host."""
        return self._leases("WHERE done = 0", ())

    def undecided_leases(self) -> list[LeaseEntry]:
        """Open ones, and those that have reported and wait for their receipt."""
        return self._leases("WHERE done = 0 OR receipt_json IS NULL", ())

    def recent_leases(self, limit: int) -> list[LeaseEntry]:
        return self._leases("ORDER BY granted_at_ms DESC LIMIT ?", (limit,))

    def forget_undecided(self, lease_id: LeaseId) -> None:
        """The marketplace gave it to somebody else: there is nothing to wait for."""
        with self._together():
            self._db.execute(
                "UPDATE leases SET receipt_json = COALESCE(receipt_json, '') WHERE lease_id = ?", (lease_id,)
            )
            self._db.execute(
                "DELETE FROM earnings WHERE lease_id = ?"
                " AND EXISTS (SELECT 1 FROM leases WHERE leases.lease_id = earnings.lease_id AND receipt_json = '')",
                (lease_id,),
            )
        self._db.execute("UPDATE events SET acknowledged = 1 WHERE lease_id = ?", (lease_id,))

    def forget_old(self, before_ms: int) -> int:
        """Of leases that were granted before then and are over, all but what was earned; of how many. The rest of very many another time."""
        return forget_old_leases(self._db, before_ms)

    # --- events -----------------------------------------------------------------------------------------------------

    def add_event(self, lease_id: LeaseId, fence: int, at_ms: int, body: LeaseEventBody) -> LeaseEvent:
        row = self._db.execute(
            "SELECT COALESCE(MAX(sequence), 0) FROM events WHERE lease_id = ?", (lease_id,)
        ).fetchone()
        event = LeaseEvent(lease_id=lease_id, fence=fence, sequence=int(row[0]) + 1, at_ms=at_ms, body=body)
        self._db.execute(
            "INSERT INTO events (lease_id, sequence, event_json) VALUES (?, ?, ?)",
            (lease_id, event.sequence, event.model_dump_json()),
        )
        return event

    def acknowledge(self, lease_id: LeaseId, sequence: int) -> None:
        """Everything up to this one is taken."""
        self._db.execute(
            "UPDATE events SET acknowledged = 1 WHERE lease_id = ? AND sequence <= ?", (lease_id, sequence)
        )

    def unacknowledged(self) -> list[LeaseEvent]:
        rows = self._db.execute(
            "SELECT event_json FROM events WHERE acknowledged = 0 ORDER BY lease_id, sequence"
        ).fetchall()
        return [LeaseEvent.model_validate_json(row[0]) for row in rows]

    def has_said(self, lease_id: LeaseId, kinds: Sequence[str]) -> bool:
        marks = ",".join("?" for _ in kinds)
        query = f"SELECT 1 FROM events WHERE lease_id = ? AND json_extract(event_json, '$.body.kind') IN ({marks})"  # noqa: S608 - marks only
        return self._db.execute(query, (lease_id, *kinds)).fetchone() is not None

    def started_on(self, lease_id: LeaseId) -> tuple[str, ...] | None:
        """UUIDs of the GPUs that its container was started with; None before that."""
        query = (
            "SELECT json_extract(event_json, '$.body.gpu_uuids') FROM events"
            " WHERE lease_id = ? AND json_extract(event_json, '$.body.kind') = 'started'"
        )
        row = self._db.execute(query, (lease_id,)).fetchone()
        return None if row is None else tuple(json.loads(row[0] or "[]"))

    # --- what we earned ---------------------------------------------------------------------------------------------

    def add_usage(self, signed: SignedUsage) -> None:
        record = signed.record
        with self._together():
            self._db.execute(
                "INSERT OR REPLACE INTO usage VALUES (?, ?, ?)",
                (record.lease_id, record.sequence, signed.model_dump_json()),
            )
            self._db.execute(
                f"INSERT OR REPLACE INTO earnings SELECT lease_id, ?, {_VAULT_OF}, ? FROM leases"  # noqa: S608 - a constant
                " WHERE lease_id = ? AND receipt_json IS NULL",
                (record.sequence, record.amount, record.lease_id),
            )

    def usage(self, lease_id: LeaseId) -> list[SignedUsage]:
        rows = self._db.execute(
            "SELECT signed_json FROM usage WHERE lease_id = ? ORDER BY sequence", (lease_id,)
        ).fetchall()
        return [SignedUsage.model_validate_json(row[0]) for row in rows]

    def usage_with_receipts(self) -> list[tuple[SignedUsage, str | None]]:
        """Every countersigned record with its lease's receipt as JSON: None while there is none, empty when the lease was taken away."""
        rows = self._db.execute("SELECT signed_json, receipt_json FROM usage JOIN leases USING (lease_id)").fetchall()
        return [(SignedUsage.model_validate_json(row[0]), row[1]) for row in rows]

    def decisions(self, limit: int) -> list[Decision]:
        """The newest grants that were answered, newest first."""
        rows = self._db.execute(
            "SELECT lease_id, granted_at_ms, json_extract(event_json, '$.body.kind'), json_extract(event_json, '$.body.code'),"
            " json_extract(event_json, '$.body.detail') FROM leases JOIN events USING (lease_id)"
            " WHERE json_extract(event_json, '$.body.kind') IN ('accepted', 'declined') ORDER BY granted_at_ms DESC LIMIT ?",
            (limit,),
        ).fetchall()
        return [Decision(LeaseId(row[0]), row[1], row[2] == "accepted", row[3] or "", row[4] or "") for row in rows]

    def undecided_amount(self) -> int:
        """Base units countersigned for leases without a receipt: what this node has at stake now."""
        query = "SELECT SUM(amount) FROM earnings JOIN leases USING (lease_id) WHERE receipt_json IS NULL"
        return int(self._db.execute(query).fetchone()[0] or 0)

    def countersigned(self, lease_id: LeaseId) -> int:
        """Base units of a lease that count so far."""
        query = "SELECT SUM(amount) FROM earnings WHERE lease_id = ?"
        return int(self._db.execute(query, (lease_id,)).fetchone()[0] or 0)

    def earned(self, fee_basis_points: int) -> dict[str, int]:
        """By vault, base units: what counts of all leases, less the fee, which is rounded down for each record, and less refunds.

        Of a lease with a receipt the receipt's records count, of one without those countersigned so far; none when it was taken away.
        Asked each second: added up again only when something was written, by this process or another.
        """
        version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        state = (version, self._db.total_changes, fee_basis_points)
        if self._sums is None or self._sums[0] != state:
            rows = self._db.execute(
                "SELECT vault, SUM(amount - amount * ? / 10000) FROM earnings GROUP BY vault", (fee_basis_points,)
            ).fetchall()
            sums = {str(vault): int(amount) for vault, amount in rows}
            for vault, amount in self._db.execute("SELECT vault, SUM(amount) FROM refunds GROUP BY vault").fetchall():
                sums[str(vault)] = sums.get(str(vault), 0) - int(amount)
            self._sums = state, sums
        return dict(self._sums[1])

    def add_refund(self, signed: SignedRefund) -> None:
        """What this node is owed less. Safe to repeat."""
        refund = signed.refund
        self._db.execute(
            "INSERT OR IGNORE INTO refunds VALUES (?, ?, ?, ?, ?, ?)",
            (
                refund.refund_id,
                refund.lease_id,
                refund.vault,
                refund.from_node,
                refund.at_ms,
                signed.model_dump_json(),
            ),
        )

    def refunds(self) -> list[SignedRefund]:
        """Oldest first."""
        rows = self._db.execute("SELECT signed_json FROM refunds ORDER BY at_ms, refund_id").fetchall()
        return [SignedRefund.model_validate_json(row[0]) for row in rows]

    def add_capture(self, signature: str, vault: str, settled_until: int, paid: int) -> None:
        """`paid` to this node by a finalized capture that brought the vault's total to `settled_until`. Safe to repeat."""
        self._db.execute("INSERT OR IGNORE INTO captures VALUES (?, ?, ?, ?)", (signature, vault, settled_until, paid))

    def captured(self) -> dict[str, int]:
        """By vault, what captures have paid to this node."""
        rows = self._db.execute("SELECT vault, SUM(paid) FROM captures GROUP BY vault").fetchall()
        return {str(vault): int(paid) for vault, paid in rows}

    def captured_until(self, vault: str) -> int:
        """The vault's total up to which its captures are entered."""
        row = self._db.execute("SELECT MAX(settled_until) FROM captures WHERE vault = ?", (vault,)).fetchone()
        return int(row[0] or 0)

    def set_receipt(self, lease_id: LeaseId, receipt: SignedReceipt) -> None:
        with self._together():
            self._db.execute(
                "UPDATE leases SET receipt_json = ? WHERE lease_id = ?", (receipt.model_dump_json(), lease_id)
            )
            self._db.execute("DELETE FROM earnings WHERE lease_id = ?", (lease_id,))
            self._db.executemany(
                f"INSERT INTO earnings SELECT lease_id, ?, {_VAULT_OF}, ? FROM leases WHERE lease_id = ?",  # noqa: S608 - a constant
                [(number, item.record.amount, lease_id) for number, item in enumerate(receipt.usage)],
            )

    def keep_order(self, order: SignedOrder, now_ms: int) -> None:
        """The newest of each vault: of two that wait for the same total, the one that came last."""
        self._db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?) ON CONFLICT (vault) DO UPDATE SET expected_settled = excluded.expected_settled,"
            " order_json = excluded.order_json, kept_at_ms = excluded.kept_at_ms"
            " WHERE excluded.expected_settled >= orders.expected_settled",
            (order.vault, order.expected_settled, order.model_dump_json(), now_ms),
        )

    def orders(self) -> list[tuple[SignedOrder, int]]:
        """Each with the time at which it came."""
        rows = self._db.execute("SELECT order_json, kept_at_ms FROM orders ORDER BY kept_at_ms").fetchall()
        return [(SignedOrder.model_validate_json(row[0]), int(row[1])) for row in rows]

    def drop_order(self, order: SignedOrder) -> None:
        """The vault's total has moved on: it can never land any more."""
        self._db.execute(
            "DELETE FROM orders WHERE vault = ? AND expected_settled = ?", (order.vault, order.expected_settled)
        )

    def checkpoints(self, lease_id: LeaseId) -> set[str]:
        """Names of those that are safe."""
        return {row[0] for row in self._db.execute("SELECT name FROM checkpoints WHERE lease_id = ?", (lease_id,))}

    def add_checkpoint(self, lease_id: LeaseId, name: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?)", (lease_id, name))

    def _fill_earnings(self) -> None:
        """Of a journal that was written before there was this table; once."""
        if self.fact("earnings_filled") is not None:
            return
        with self._together():
            self._db.execute(
                f"""
                INSERT OR IGNORE INTO earnings
                SELECT lease_id, sequence, {_VAULT_OF}, json_extract(signed_json, '$.record.amount')
                FROM leases JOIN usage USING (lease_id) WHERE receipt_json IS NULL
                UNION ALL
                SELECT lease_id, item.key, {_VAULT_OF}, json_extract(item.value, '$.record.amount')
                FROM leases, json_each(receipt_json, '$.usage') AS item WHERE receipt_json <> ''"""  # noqa: S608 - a constant
            )
            self.set_fact("earnings_filled", "yes")

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _leases(self, where: str, values: tuple[object, ...]) -> list[LeaseEntry]:
        columns = "grant_json, state, reason, handle_json, starting, done, receipt_json"
        rows = self._db.execute(f"SELECT {columns} FROM leases {where}", values).fetchall()  # noqa: S608 - constant clauses
        return [
            LeaseEntry(
                signed=SignedGrant.model_validate_json(row[0]),
                state=LeaseState(row[1]),
                reason=EndReason(row[2]) if row[2] else None,
                handle=Handle(**json.loads(row[3])) if row[3] else None,
                starting=bool(row[4]),
                done=bool(row[5]),
                receipt=SignedReceipt.model_validate_json(row[6]) if row[6] else None,
            )
            for row in rows
        ]
