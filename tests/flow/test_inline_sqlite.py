"""SQLite without a driver's thread: what waits for another process must not hold up the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from torg_marketplace.storage import inline_sqlite
from torg_marketplace.storage.engine import Sessions, create_engine


async def test_a_writer_waits_for_another_process_while_the_loop_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "market.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    sessions = Sessions(engine)
    try:
        async with sessions() as session, session.begin():
            await session.execute(text("CREATE TABLE numbers (number INTEGER)"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO numbers VALUES (1)")

        async def write() -> None:
            async with sessions() as session, session.begin():
                await session.execute(text("INSERT INTO numbers VALUES (2)"))

        writing = asyncio.create_task(write())
        for _ in range(20):  # turns of the loop, which a sleeping SQLite would not give
            await asyncio.sleep(0.001)
        assert not writing.done()
        other.execute("COMMIT")
        await writing
        other.close()
        async with sessions() as session:
            assert (await session.scalars(text("SELECT number FROM numbers ORDER BY number"))).all() == [1, 2]
            assert await session.scalar(text("PRAGMA busy_timeout")) == inline_sqlite.BUSY_TIMEOUT_MS
    finally:
        await engine.dispose()


async def test_it_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'market.sqlite'}")
    sessions = Sessions(engine)
    try:
        async with sessions() as session, session.begin():
            await session.execute(text("CREATE TABLE numbers (number INTEGER)"))
        monkeypatch.setattr(inline_sqlite, "BUSY_TIMEOUT_MS", 20)
        other = sqlite3.connect(tmp_path / "market.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises((OperationalError, sqlite3.OperationalError), match="database is locked"):
            async with sessions() as session, session.begin():
                await session.execute(text("INSERT INTO numbers VALUES (1)"))
        other.close()
    finally:
        await engine.dispose()
