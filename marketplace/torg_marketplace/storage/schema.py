"""The database's schema: brought up to date by migrations, compared with the models by a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from torg_marketplace.storage.registry import metadata

MIGRATIONS = Path(__file__).parent / "migrations"


async def upgrade(engine: AsyncEngine) -> None:
    """Runs all migrations that the database lacks, in one transaction. Safe to repeat."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


async def differences(engine: AsyncEngine) -> list[Any]:
    """What the models have and the database lacks, or the other way round; empty when they agree."""
    async with engine.connect() as connection:
        return await connection.run_sync(_differences)


def new_migration(connection: Connection, message: str, revision: str) -> None:
    """Writes a migration from the difference between models and database. For developers; read what it wrote."""
    command.revision(_config(connection), message=message, rev_id=revision, autogenerate=True)


def _upgrade(connection: Connection) -> None:
    command.upgrade(_config(connection), "head")


def _differences(connection: Connection) -> list[Any]:
    found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    return found


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
