"""SQLite in memory: nothing of it waits, so what a simulated market does always happens in the same order. One connection: flows run
one after the other."""

from __future__ import annotations

import sqlite3
from functools import cache

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from torg_marketplace.storage import inline_sqlite
from torg_marketplace.storage.engine import READ_ONLY
from torg_marketplace.storage.registry import metadata


@cache
def memory_engine() -> tuple[AsyncEngine, sqlite3.Connection]:
    """The process's one engine (what SQLAlchemy compiled for one market serves the next), and its connection for reading
    beside it."""
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=inline_sqlite.InlineConnection)

    engine = create_async_engine(
        f"{inline_sqlite.DRIVER}://", poolclass=StaticPool, creator=lambda: connection, commit_in_thread=False
    )
    event.listen(engine.sync_engine, "begin", _begin)
    return engine, connection


def empty_market() -> tuple[AsyncEngine, sqlite3.Connection]:
    """All tables, no rows. One simulated market at a time per process: the one before is gone."""
    engine, connection = memory_engine()
    _tables().backup(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    return engine, connection


def _begin(connection: Connection) -> None:
    inline_sqlite.begin(connection, read_only=connection.get_execution_options().get(READ_ONLY, False))


@cache
def _tables() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    metadata.create_all(create_engine("sqlite://", poolclass=StaticPool, creator=lambda: connection))
    return connection
