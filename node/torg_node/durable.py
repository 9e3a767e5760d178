"""How this node opens the SQLite files that it must not lose: each statement durable by itself, several together when asked."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path


def open_durable(path: Path, schema: str) -> sqlite3.Connection:
    """A connection that commits each statement; `schema` is brought in. Waits for other processes, twenty seconds at most: on a busy disk a commit may take some."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.executescript(schema)
    return database


@contextlib.contextmanager
def exclusively(database: sqlite3.Connection) -> Iterator[None]:
    """What is written inside is written together or not at all, and nobody else writes meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
