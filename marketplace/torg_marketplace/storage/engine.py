"""Engines for SQLite and PostgreSQL that behave alike: one writer at a time, and readers that see one moment and never wait.

SQLite: WAL, foreign keys on, and BEGIN IMMEDIATE for transactions that may write, so that two of them queue up instead of
failing half-way with "database is locked". PostgreSQL: an advisory lock for the length of a writing transaction says the same
to all processes of a marketplace; what reads is a read-only snapshot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from torg_marketplace.storage import inline_sqlite
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.json_text import from_text, to_text
from torg_marketplace.storage.registry import know_parents
from torg_marketplace.storage.sessions import KeepingAsyncSession
from torg_marketplace.storage.silence import connection_class
from torg_protocol.errors import Unavailable

R = TypeVar("R", bound=Base)
log = logging.getLogger(__name__)

_TRUSTED_FOR_S = 1.0
_STATEMENTS_KEPT = 1_000  # compiled and prepared: more than a marketplace has, or they push each other out
READ_ONLY = "torg_read_only"  # execution option of transactions that write nothing
WRITER_LOCK = int.from_bytes(
    b"torg", "big"
)  # the advisory lock's number; other programs in the same database have others


def create_engine(url: str, *, stuck_after_s: float = 10.0) -> AsyncEngine:
    """`url` as SQLAlchemy wants it: sqlite:///path or postgresql+asyncpg://...

    `stuck_after_s`: PostgreSQL ends a transaction that has said nothing for so long. Its process is stopped, or its machine is gone, and
    nobody else could write until it comes back. This side gives a server up that is not even heard of for as long."""
    if not url.startswith("sqlite"):
        engine = create_async_engine(
            url,
            isolation_level="READ COMMITTED",
            query_cache_size=_STATEMENTS_KEPT,
            json_serializer=to_text,
            json_deserializer=from_text,
            connect_args={
                "prepared_statement_cache_size": _STATEMENTS_KEPT,
                "connection_class": connection_class(stuck_after_s),
                "timeout": stuck_after_s,  # for being connected
                "server_settings": {
                    "idle_in_transaction_session_timeout": str(round(stuck_after_s * 1000)),
                    "tcp_keepalives_idle": "10",  # of a machine that is gone nothing is heard, not even an end
                    "tcp_keepalives_interval": "5",
                    "tcp_keepalives_count": "3",
                },
            },
        )
        event.listen(engine.sync_engine, "do_connect", _connect)
        event.listen(engine.sync_engine, "connect", _commit_for_good)
        event.listen(engine.sync_engine, "begin", _begin_postgresql)
        event.listen(engine.sync_engine, "checkout", _check_alive)
        event.listen(engine.sync_engine, "checkin", _note_use)
        return engine
    file = make_url(url).set(drivername=inline_sqlite.DRIVER)
    engine = create_async_engine(file, json_serializer=to_text, json_deserializer=from_text)
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def answering() -> Iterator[None]:
    """Around a transaction. Raises Unavailable `database_unavailable` for a database that does not answer, or has stopped in the middle."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if isinstance(error, DBAPIError) and not _has_gone(error):
            raise
        why = (str(error).splitlines() or [""])[0]
        log.warning("the database does not answer: %s", why)
        raise Unavailable(
            "the database does not answer", code="database_unavailable", hint="try again in a moment"
        ) from error


def _has_gone(error: DBAPIError) -> bool:
    """By PostgreSQL's classes of errors: connection lost, out of resources, shutting down or starting, ended for its silence."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    known = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return known or state[:2] in {"08", "53", "57"} or state == "25P03"


def _connect(dialect: Any, _record: object, arguments: Any, options: Any) -> Any:
    """A server that is not there is the database's error, and not a file's or a socket's."""
    try:
        return dialect.connect(*arguments, **options)
    except (OSError, TimeoutError) as error:
        raise dialect.dbapi.OperationalError(str(error) or type(error).__name__) from error


def _commit_for_good(connection: Any, _record: object) -> None:
    """What is committed must survive a crash of the server: a capture is stored before it is sent, and one that the books have forgotten
    looks like theft. Where the server says "off", this session says otherwise; all other settings are stricter than "on"."""
    cursor = connection.cursor()
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.close()
    connection.commit()


class Sessions(async_sessionmaker[KeepingAsyncSession]):
    """Called: a session that may write. `reading`: one that writes nothing, waits for no writer, and begins with its first question."""

    def __init__(self, engine: AsyncEngine) -> None:
        know_parents()
        super().__init__(engine, class_=KeepingAsyncSession, expire_on_commit=False)
        self._read_only = engine.execution_options(**{READ_ONLY: True})

    def reading(self) -> KeepingAsyncSession:
        return self(bind=self._read_only)


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
    """The driver says BEGIN with the first statement, and how: that takes no statement of its own."""
    driver: Any = connection.connection.dbapi_connection
    driver.readonly = connection.get_execution_options().get(READ_ONLY, False)
    driver.isolation_level = "repeatable_read" if driver.readonly else "read_committed"
    if not driver.readonly:  # READ COMMITTED: what was written before the lock was given is seen
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
