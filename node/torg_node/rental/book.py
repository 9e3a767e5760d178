"""The rentals of this node, in its journal file. Written down before it is done, as everything there."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from torg_node.durable import open_durable
from torg_node.executors.port import Handle
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict
from torg_protocol.rentals import RentalEnd, RentalOutputs, RentalState, RentalTerms

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rentals (
    rental_id TEXT PRIMARY KEY, vault TEXT NOT NULL UNIQUE, terms_json TEXT NOT NULL, client_signature TEXT NOT NULL,
    cap_json TEXT NOT NULL, state TEXT NOT NULL, starting INTEGER NOT NULL DEFAULT 0, handle_json TEXT, useful_ms INTEGER NOT NULL DEFAULT 0,
    captured INTEGER NOT NULL DEFAULT 0, end_reason TEXT, exit_code INTEGER, detail TEXT NOT NULL DEFAULT '', outputs_json TEXT,
    ended_at_ms INTEGER);
CREATE TABLE IF NOT EXISTS agreed_closings (vault TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_COLUMNS = (
    "terms_json, client_signature, cap_json, state, starting, handle_json, useful_ms, captured, end_reason, exit_code,"
    " detail, outputs_json, ended_at_ms"
)


@dataclass(frozen=True, slots=True)
class RentalEntry:
    """`useful_ms`: final once the container has ended. `captured`: base units, as last read from the chain.
    `starting`: a start was begun, so a container may exist."""

    terms: RentalTerms
    client_signature: str
    cap: SignedCap
    state: RentalState
    starting: bool
    handle: Handle | None
    useful_ms: int
    captured: int
    end: RentalEnd | None
    exit_code: int | None
    detail: str
    outputs: RentalOutputs | None
    ended_at_ms: int | None

    @property
    def id(self) -> str:
        return self.terms.rental_id


class RentalBook:
    """Every method is one durable transaction."""

    def __init__(self, path: Path) -> None:
        self._db = open_durable(path, _SCHEMA)

    def close(self) -> None:
        self._db.close()

    def add(self, terms: RentalTerms, client_signature: str, cap: SignedCap) -> None:
        """Raises Conflict `vault_rented` when the vault, or the id, is another rental's."""
        try:
            self._db.execute(
                "INSERT INTO rentals (rental_id, vault, terms_json, client_signature, cap_json, state) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    terms.rental_id,
                    terms.vault,
                    terms.model_dump_json(),
                    client_signature,
                    cap.model_dump_json(),
                    RentalState.PREPARING,
                ),
            )
        except sqlite3.IntegrityError:
            raise Conflict(
                "this vault serves another rental already; each needs its own",
                code="vault_rented",
                field="vault",
                value=terms.vault,
            ) from None

    def entry(self, rental_id: str) -> RentalEntry | None:
        found = self._entries("WHERE rental_id = ?", (rental_id,))
        return found[0] if found else None

    def by_vault(self, vault: str) -> RentalEntry | None:
        found = self._entries("WHERE vault = ?", (vault,))
        return found[0] if found else None

    def live(self) -> list[RentalEntry]:
        """Those that need this host."""
        return self._entries("WHERE state IN (?, ?)", (RentalState.PREPARING, RentalState.RUNNING))

    def unclosed(self) -> list[RentalEntry]:
        """Those whose vault may still be there."""
        return self._entries("WHERE state <> ?", (RentalState.CLOSED,))

    def all(self) -> list[RentalEntry]:
        return self._entries("ORDER BY rowid DESC", ())

    def raise_cap(self, rental_id: str, cap: SignedCap) -> None:
        self._db.execute("UPDATE rentals SET cap_json = ? WHERE rental_id = ?", (cap.model_dump_json(), rental_id))

    def intend_start(self, rental_id: str) -> None:
        self._db.execute("UPDATE rentals SET starting = 1 WHERE rental_id = ?", (rental_id,))

    def started(self, rental_id: str, handle: Handle) -> None:
        self._db.execute(
            "UPDATE rentals SET state = ?, handle_json = ? WHERE rental_id = ?",
            (RentalState.RUNNING, json.dumps(asdict(handle)), rental_id),
        )

    def ended(
        self,
        rental_id: str,
        *,
        end: RentalEnd,
        useful_ms: int,
        exit_code: int | None,
        detail: str,
        outputs: RentalOutputs | None,
        now_ms: int,
    ) -> None:
        self._db.execute(
            "UPDATE rentals SET state = ?, end_reason = ?, useful_ms = ?, exit_code = ?, detail = ?, outputs_json = ?, ended_at_ms = ?"
            " WHERE rental_id = ?",
            (
                RentalState.ENDED,
                end,
                useful_ms,
                exit_code,
                detail,
                outputs.model_dump_json() if outputs else None,
                now_ms,
                rental_id,
            ),
        )

    def captured(self, rental_id: str, amount: int) -> None:
        self._db.execute("UPDATE rentals SET captured = ? WHERE rental_id = ?", (amount, rental_id))

    def closed(self, rental_id: str) -> None:
        self._db.execute("UPDATE rentals SET state = ? WHERE rental_id = ?", (RentalState.CLOSED, rental_id))

    def agreed_to_close(self, vault: str) -> None:
        """From now on its depositor may close it at any moment: it serves no rental any more."""
        self._db.execute("INSERT OR IGNORE INTO agreed_closings VALUES (?)", (vault,))

    def has_agreed_to_close(self, vault: str) -> bool:
        return self._db.execute("SELECT 1 FROM agreed_closings WHERE vault = ?", (vault,)).fetchone() is not None

    def _entries(self, clause: str, values: tuple[object, ...]) -> list[RentalEntry]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM rentals {clause}", values).fetchall()  # noqa: S608 - constant clauses
        return [_entry(row) for row in rows]


def _entry(row: tuple[object, ...]) -> RentalEntry:
    terms, signature, cap, state, starting, handle, useful_ms, captured, end, exit_code, detail, outputs, ended_at = row
    return RentalEntry(
        terms=RentalTerms.model_validate_json(str(terms)),
        client_signature=str(signature),
        cap=SignedCap.model_validate_json(str(cap)),
        state=RentalState(str(state)),
        starting=bool(starting),
        handle=Handle(**json.loads(str(handle))) if handle else None,
        useful_ms=_whole(useful_ms),
        captured=_whole(captured),
        end=RentalEnd(str(end)) if end else None,
        exit_code=None if exit_code is None else _whole(exit_code),
        detail=str(detail),
        outputs=RentalOutputs.model_validate_json(str(outputs)) if outputs else None,
        ended_at_ms=None if ended_at is None else _whole(ended_at),
    )


def _whole(value: object) -> int:
    return int(str(value))
