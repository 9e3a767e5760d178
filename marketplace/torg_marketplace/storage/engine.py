"""Engines for SQLite and PostgreSQL that behave alike: one writer at a time, and readers that see one moment and never wait.

SQLite: WAL, foreign keys on, and BEGIN IMMEDIATE for transactions that may write, so that two of them queue up instead of
failing half-way with "database is locked". PostgreSQL: an advisory lock for the length of a writing transaction says the same
to all processes of a marketplace; what reads is a read-only snapshot.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

READ_ONLY = "torg_read_only"  # execution option of transactions that write nothing
BUSY_TIMEOUT_MS = 10_000
WRITER_LOCK = int.from_bytes(
    b"torg", "big"
)  # the advisory lock's number; other programs in the same database have others


def create_engine(url: str) -> AsyncEngine:
    """`url` as SQLAlchemy wants it: sqlite+aiosqlite:///path or postgresql+asyncpg://..."""
    if not url.startswith("sqlite"):
        engine = create_async_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
        event.listen(engine.sync_engine, "begin", _begin_postgresql)
        return engine
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a committed ledger survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(READ_ONLY, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    else:  # READ COMMITTED: what was written before the lock was given is seen
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
