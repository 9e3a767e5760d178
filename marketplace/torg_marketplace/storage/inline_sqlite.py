"""SQLAlchemy's SQLite for an event loop, without a thread between them.

A statement on SQLite takes microseconds; handing it to a thread and back, as asyncio drivers do, takes ten times as long, and a job is a
hundred statements. So statements run at once, on the event loop. What may wait leaves it: COMMIT, which waits for the disk, goes to a
thread; BEGIN IMMEDIATE, which waits for another process's write, is tried again and again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, StaticPool
from sqlalchemy.util import await_

DRIVER = "sqlite+torg_inline"
BUSY_TIMEOUT_MS = 30_000  # for other processes' writes; those of this process queue up before
_LOOK_AGAIN_S = 0.002


class InlineConnection(sqlite3.Connection):
    waits_for_disk = True  # at the commit of what is open now: not where nothing was to be written

    def cursor(self, *_: Any) -> InlineCursor:  # type: ignore[override]
        return super().cursor(InlineCursor)


class InlineCursor(sqlite3.Cursor):
    async def _async_soft_close(self) -> None:
        """What AsyncConnection calls on its drivers' cursors: all rows are here already."""


class InlineSqlite(SQLiteDialect_pysqlite):
    """`commit_in_thread` False: for databases in memory, whose commits wait for nothing."""

    driver = "torg_inline"
    is_async = True
    supports_statement_cache = True

    def __init__(self, commit_in_thread: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self._commit_in_thread = commit_in_thread

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return AsyncAdaptedQueuePool if cls._is_url_file_db(url) else StaticPool

    def create_connect_args(self, url: URL) -> Any:
        arguments, options = super().create_connect_args(url)
        return arguments, {**options, "check_same_thread": False, "factory": InlineConnection}

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:  # noqa: ARG002 - SQLAlchemy's signature
        cursor.execute(statement, parameters)
        await_(_at_once())

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:  # noqa: ARG002
        cursor.executemany(statement, parameters)
        await_(_at_once())

    def do_commit(self, dbapi_connection: Any) -> None:
        if self._commit_in_thread and dbapi_connection.in_transaction and dbapi_connection.waits_for_disk:
            await_(asyncio.to_thread(dbapi_connection.commit))
        else:
            dbapi_connection.commit()

    def get_driver_connection(self, connection: Any) -> Any:
        return connection


async def _at_once() -> None:
    """AsyncConnection refuses statements that await nothing: it takes them for a driver that blocks by mistake."""


def begin(connection: Connection, *, read_only: bool) -> None:
    """Opens a transaction; one that may write waits here for its turn. Raises sqlite3.OperationalError after `BUSY_TIMEOUT_MS`."""
    database = connection.connection.dbapi_connection
    if not isinstance(database, InlineConnection):
        raise TypeError(f"not SQLite as it is opened here: {database!r}")
    database.waits_for_disk = not read_only
    if read_only:
        database.execute("BEGIN")
        return
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    database.execute("PRAGMA busy_timeout=0")  # the event loop must not sleep in SQLite
    try:
        while not _begun(database, last_try=time.monotonic() > deadline):
            await_(asyncio.sleep(_LOOK_AGAIN_S))
    finally:
        database.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def _begun(database: sqlite3.Connection, *, last_try: bool) -> bool:
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if last_try or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


registry.register("sqlite.torg_inline", __name__, InlineSqlite.__name__)
