"""Engines for SQLite and PostgreSQL that behave alike: one writer at a time, and readers that see one moment and never wait.

SQLite: WAL, foreign keys on, and BEGIN IMMEDIATE for transactions that may write, so that two of them queue up instead of
failing half-way with "database is locked". PostgreSQL: an advisory lock for the length of a writing transaction says the same
to all processes of a marketplace; what reads is a read-only snapshot.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from torg_marketplace.storage import inline_sqlite

_TRUSTED_FOR_S = 1.0
READ_ONLY = "torg_read_only"  # execution option of transactions that write nothing
WRITER_LOCK = int.from_bytes(
    b"torg", "big"
)  # the advisory lock's number; other programs in the same database have others


def create_engine(url: str) -> AsyncEngine:
    """`url` as SQLAlchemy wants it: sqlite:///path or postgresql+asyncpg://..."""
    if not url.startswith("sqlite"):
        engine = create_async_engine(url, isolation_level="READ COMMITTED")
        event.listen(engine.sync_engine, "begin", _begin_postgresql)
        event.listen(engine.sync_engine, "checkout", _check_alive)
        event.listen(engine.sync_engine, "checkin", _note_use)
        return engine
    engine = create_async_engine(make_url(url).set(drivername=inline_sqlite.DRIVER))
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False, sync_session_class=KeepingSession)


class KeepingSession(Session):
    """Keeps the rows that it has met until it is closed: asking for one again is no question to the database. SQLAlchemy's own sessions
    forget a row as soon as nobody else holds it."""


@event.listens_for(KeepingSession, "loaded_as_persistent")
@event.listens_for(KeepingSession, "pending_to_persistent")
def _keep(session: Session, row: object) -> None:
    session.info.setdefault("torg_kept", []).append(row)


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a committed ledger survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={inline_sqlite.BUSY_TIMEOUT_MS}")
    cursor.close()


def _check_alive(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """A connection that lay idle may have died with its server; one that was used a moment ago would have said so."""
    if time.monotonic() - record.info.get("torg_used_s", 0.0) > _TRUSTED_FOR_S:
        try:
            connection.ping()
        except Exception as error:
            raise DisconnectionError("the server has gone") from error


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["torg_used_s"] = time.monotonic()


def _begin_sqlite(connection: Connection) -> None:
    inline_sqlite.begin(connection, read_only=connection.get_execution_options().get(READ_ONLY, False))


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(READ_ONLY, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    else:  # READ COMMITTED: what was written before the lock was given is seen
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
