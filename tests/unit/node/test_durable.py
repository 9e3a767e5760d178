"""The node's SQLite files: together or not at all, and there for the next process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from torg_node.durable import exclusively, open_durable

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY);"


def names(database: sqlite3.Connection) -> list[str]:
    return [row[0] for row in database.execute("SELECT name FROM facts ORDER BY name")]


def test_what_fails_halfway_leaves_nothing_behind(tmp_path: Path) -> None:
    database = open_durable(tmp_path / "new" / "file", SCHEMA)
    database.execute("INSERT INTO facts VALUES ('alone')")

    with pytest.raises(sqlite3.IntegrityError), exclusively(database):
        database.executemany("INSERT INTO facts VALUES (?)", [("first",), ("alone",)])
    assert names(database) == ["alone"]
    with exclusively(database):
        database.execute("INSERT INTO facts VALUES ('second')")

    assert names(open_durable(tmp_path / "new" / "file", SCHEMA)) == ["alone", "second"]


def test_nobody_else_writes_meanwhile(tmp_path: Path) -> None:
    ours, theirs = (open_durable(tmp_path / "file", SCHEMA) for _ in range(2))
    theirs.execute("PRAGMA busy_timeout=1")

    with exclusively(ours), pytest.raises(sqlite3.OperationalError, match="locked"):
        theirs.execute("INSERT INTO facts VALUES ('theirs')")
    theirs.execute("INSERT INTO facts VALUES ('later')")

    assert names(ours) == ["later"]
