"""The journal's tables, and how older files become newer ones. `PRAGMA user_version` says how far a file has come."""

from __future__ import annotations

import contextlib
import sqlite3

from torg_protocol.errors import Invalid

_VERSION_1 = (
    """CREATE TABLE IF NOT EXISTS vaults (
    address TEXT PRIMARY KEY, marketplace TEXT NOT NULL, salt INTEGER NOT NULL, grace_s INTEGER NOT NULL,
    signer TEXT NOT NULL, opened_at_ms INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS jobs (
    idempotency_key TEXT PRIMARY KEY, job_id TEXT UNIQUE, vault TEXT NOT NULL REFERENCES vaults(address), name TEXT NOT NULL,
    max_amount INTEGER NOT NULL, final_amount INTEGER, submitted_at_ms INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS receipts (
    lease_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, amount INTEGER NOT NULL, body TEXT NOT NULL)""",
)
_VERSION_2 = (
    "ALTER TABLE vaults ADD COLUMN opening INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN spec_digest TEXT",
    "ALTER TABLE jobs ADD COLUMN dead_after_ms INTEGER",
    "CREATE INDEX jobs_by_vault ON jobs (vault)",
    "CREATE INDEX receipts_by_job ON receipts (job_id)",
)
_VERSION_3 = (
    """CREATE TABLE rentals (
    rental_id TEXT PRIMARY KEY, node TEXT NOT NULL, url TEXT NOT NULL, network_json TEXT NOT NULL, vault TEXT NOT NULL, salt INTEGER NOT NULL,
    deposit INTEGER NOT NULL, terms_json TEXT, cap INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL, opened_at_ms INTEGER NOT NULL,
    paid INTEGER)""",
    "CREATE TABLE nodes (node TEXT PRIMARY KEY, url TEXT NOT NULL)",
)
_MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3)


def migrate(connection: sqlite3.Connection) -> None:
    """Safe to repeat, and for two processes at once. Raises Invalid `journal_too_new`."""
    newest = len(_MIGRATIONS)
    if _version(connection) == newest:
        return
    with contextlib.suppress(
        sqlite3.OperationalError
    ):  # locked by another process that does the same: it will have done it
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)
    if version > newest:
        raise Invalid(
            "this journal was written by a newer torg",
            code="journal_too_new",
            field="journal",
            value=version,
            hint=f"this torg knows up to {newest}: install a newer one",
        )
    for statements in _MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {newest}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
