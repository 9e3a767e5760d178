"""The migrations make what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from torg_marketplace.storage.engine import create_engine
from torg_marketplace.storage.registry import metadata
from torg_marketplace.storage.schema import differences, upgrade


async def test_migrations_and_models_agree(database_url: str) -> None:
    engine = create_engine(database_url)
    try:
        await upgrade(engine)
        await upgrade(engine)  # safe to repeat
        assert await differences(engine) == []
    finally:
        await engine.dispose()


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_the_models_mean_something_to_postgresql_too(table: Table) -> None:
    dialect = postgresql.dialect()
    assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=dialect))
    assert all(str(CreateIndex(index).compile(dialect=dialect)).startswith("CREATE") for index in table.indexes)


async def test_sqlite_is_configured_for_durability(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'market.sqlite'}")
    try:
        async with engine.connect() as connection:
            values = [
                await connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "foreign_keys", "synchronous")
            ]
        assert values == ["wal", 1, 2]
    finally:
        await engine.dispose()
