"""Deleting for good. SQLite leaves deleted bytes in free pages of its file until something overwrites them; PostgreSQL until the next vacuum."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_BUSY_S = 30.0


async def erasing(session: AsyncSession) -> None:
    """What this transaction deletes or overwrites is zeroed in SQLite's file. Old pages are in the write-ahead log until `empty_log`."""
    if session.get_bind().dialect.name == "sqlite":
        await session.execute(text("PRAGMA secure_delete = ON"))


async def empty_log(session: AsyncSession) -> None:
    """Moves SQLite's write-ahead log into its file and cuts it to nothing. Best effort: readers that are not done put it off to the log's
    next turn."""
    bind = session.get_bind()
    if bind.dialect.name == "sqlite" and (path := bind.engine.url.database):
        await asyncio.to_thread(_empty_log, path)


def _empty_log(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
