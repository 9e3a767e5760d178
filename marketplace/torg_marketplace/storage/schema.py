"""The database's schema: brought up to date by migrations, compared with the models by a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from torg_marketplace.storage.registry import metadata
from torg_protocol.errors import Conflict, Invalid

MIGRATIONS = Path(__file__).parent / "migrations"


async def upgrade(engine: AsyncEngine) -> None:
    """Runs all migrations that the database lacks, in one transaction. Safe to repeat. Raises Conflict `schema_newer`."""
    async with _altering(engine) as connection:
        await connection.run_sync(_upgrade)


async def require_current(engine: AsyncEngine) -> None:
    """For whoever works beside a marketplace, which may run another release: only a database with nothing in it is changed. Raises Conflict
    `schema_older`, `schema_newer`."""
    async with _altering(engine) as connection:
        await connection.run_sync(_require_current)


async def migrate(engine: AsyncEngine, revision: str) -> tuple[str | None, str | None]:
    """To a revision, forth or back, in one transaction; from where and to where it led. Back is for a return to an older release: what only
    the newer one knew is lost. Raises Invalid `revision_unknown`, Conflict `schema_newer`."""
    async with _altering(engine) as connection:
        return await connection.run_sync(_migrate, revision)


async def differences(engine: AsyncEngine) -> list[Any]:
    """What the models have and the database lacks, or the other way round; empty when they agree."""
    async with engine.connect() as connection:
        return await connection.run_sync(_differences)


@asynccontextmanager
async def _altering(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction. SQLite changes a table by copying and dropping it, which it refuses while rows of others refer to it: so these are checked
    at the end instead, and a reference that leads nowhere undoes all of it."""
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection if engine.dialect.name == "sqlite" else None
        if raw is not None:
            raw.execute("PRAGMA foreign_keys=OFF")  # means nothing within a transaction
        try:
            async with connection.begin():
                yield connection
                if raw is not None and (lost := raw.execute("PRAGMA foreign_key_check").fetchall()):
                    raise RuntimeError(f"this change of the schema loses what rows refer to: {lost[:5]}")
        finally:
            if raw is not None:
                raw.execute("PRAGMA foreign_keys=ON")


def new_migration(connection: Connection, message: str, revision: str) -> None:
    """Writes a migration from the difference between models and database. For developers; read what it wrote."""
    command.revision(_config(connection), message=message, rev_id=revision, autogenerate=True)


def _upgrade(connection: Connection) -> None:
    config = _config(connection)
    _revision_of(connection, _known(config))
    command.upgrade(config, "head")


def _require_current(connection: Connection) -> None:
    config = _config(connection)
    known = _known(config)
    current = _revision_of(connection, known)
    if current is None:
        command.upgrade(config, "head")
    elif current != known[0]:
        raise Conflict(
            "the database is that of an older release",
            code="schema_older",
            field="revision",
            value=current,
            hint=f"stop the marketplace, then: torg-marketplace migrate (to {known[0]}), or start it with this release; nothing was changed",
        )


def _migrate(connection: Connection, revision: str) -> tuple[str | None, str | None]:
    config = _config(connection)
    known = _known(config)
    before = _revision_of(connection, known)
    if revision not in {"head", "base", *known}:
        raise Invalid(
            "no such revision of the schema",
            code="revision_unknown",
            field="--to",
            value=revision,
            hint=f"head, base, or one of {', '.join(reversed(known))}",
        )
    back = revision == "base" or (before in known and revision in known and known.index(revision) > known.index(before))
    (command.downgrade if back else command.upgrade)(config, revision)
    return before, MigrationContext.configure(connection).get_current_revision()


def _known(config: Config) -> list[str]:
    """Revisions of this release, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]


def _revision_of(connection: Connection, known: Sequence[str]) -> str | None:
    """None: nothing is there yet. Raises Conflict `schema_newer`."""
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None or current in known:
        return current
    raise Conflict(
        "the database is that of a newer release",
        code="schema_newer",
        field="revision",
        value=current,
        hint=f"use that release, or go back with its own command: torg-marketplace migrate --to {known[0]}; nothing was changed",
    )


def _differences(connection: Connection) -> list[Any]:
    found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    return found


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
