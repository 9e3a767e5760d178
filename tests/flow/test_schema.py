"""The migrations make what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Table, inspect, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex, CreateTable

from tests.support.actors import join, make_client, spec
from tests.support.market import World
from tests.support.postgres import Postgres
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.suspension import suspensions_of
from torg_marketplace.storage.case_models import BanRow
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.models import LeaseRow, NodeEventRow, NodeRow
from torg_marketplace.storage.registry import metadata
from torg_marketplace.storage.schema import MIGRATIONS, differences, migrate, require_current, upgrade
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.states import NodeState


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One that nobody else has afterwards: its tables are changed."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'market.sqlite'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


async def test_migrations_and_models_agree(database_url: str) -> None:
    engine = create_engine(database_url)
    try:
        await upgrade(engine)
        await upgrade(engine)  # safe to repeat
        assert await differences(engine) == []
    finally:
        await engine.dispose()


async def test_migrations_lead_back_and_forth_again(database_url: str) -> None:
    engine = create_engine(database_url)
    try:
        await upgrade(engine)
        newest, there = await migrate(engine, "0001")
        assert there == "0001"
        with pytest.raises(Invalid) as unknown:
            await migrate(engine, "9999")
        assert unknown.value.code == "revision_unknown"
        assert await migrate(engine, "head") == ("0001", newest)
        assert await differences(engine) == []
        assert await migrate(engine, "base") == (newest, None)
        async with engine.connect() as connection:
            left = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert set(left) <= {"alembic_version"}
        await upgrade(engine)
        assert await differences(engine) == []
    finally:
        await engine.dispose()


async def test_who_works_beside_a_market_of_another_release_leaves_its_database_alone(database_url: str) -> None:
    engine = create_engine(database_url)
    try:
        await require_current(engine)  # nothing was there
        assert await differences(engine) == []
        await require_current(engine)
        newest, _ = await migrate(engine, "0001")
        with pytest.raises(Conflict) as older:
            await require_current(engine)
        assert (older.value.code, older.value.value) == ("schema_older", "0001")
        assert await migrate(engine, "head") == ("0001", newest)  # so it had stayed as it was

        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9998'"))
        for change in (require_current(engine), upgrade(engine), migrate(engine, "0001")):
            with pytest.raises(Conflict, match="newer release") as newer:
                await change
            assert (newer.value.code, newer.value.value) == ("schema_newer", "9998")
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == "9998"
    finally:
        await engine.dispose()


async def test_a_database_with_jobs_in_it_goes_back_and_forth_too(world: World) -> None:
    """SQLite copies tables to change them, while rows of others refer to these."""
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    engine = world.market.sessions.kw["bind"]
    await _stamp(engine)
    newest, there = await migrate(engine, "0001")
    assert (there, await differences(engine) == []) == ("0001", False)
    assert await migrate(engine, "head") == ("0001", newest)
    assert await differences(engine) == []
    async with world.market.reading() as unit:
        lease = (await unit.session.scalars(select(LeaseRow))).one()
        assert (lease.job_id, lease.node_id, lease.state) == (job.job_id, node.id, "running")
        if engine.dialect.name == "sqlite":
            assert await unit.session.scalar(text("PRAGMA foreign_keys")) == 1


async def _stamp(engine: AsyncEngine) -> None:
    """A test's SQLite is made from the models, and knows of no revision."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    async with engine.begin() as connection:
        await connection.run_sync(lambda plain: MigrationContext.configure(plain).stamp(scripts, "head"))


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


def test_every_column_that_may_name_a_blob_is_known_to_who_cleans_the_store_up() -> None:
    """A table that refers to blobs in a way that flow/garbage.py does not know would lose them after a day: teach it, then list the column."""
    found = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if "digest" in column.name or "blob" in column.name
    }
    counted = {
        "blob_uploads.digest",
        "blob_uses.digest",
        "data_names.digest",
        "volumes.digest",
    }  # what flow/garbage.py looks at
    no_blobs = {
        name for name in found if name.endswith(("spec_digest", "receipt_digest", "record_digest", "body_digest"))
    }
    needed_by_nobody = {"leases.image_digest", "leaving_blobs.digest"}
    assert found - no_blobs - needed_by_nobody == counted


async def test_why_nodes_are_suspended_is_found_in_what_was_kept_of_it(database_url: str) -> None:
    engine = create_engine(database_url)
    details = {
        "person": "by the operator: smoke",
        "banned": "by the operator: banned: scans",
        "both": "by the operator: smoke",
        "proof": "wrong digests",
    }
    try:
        await upgrade(engine)
        async with Sessions(engine)() as session, session.begin():
            for node_id in (*details, "forgotten", "active"):
                state = NodeState.ACTIVE if node_id == "active" else NodeState.SUSPENDED
                session.add(
                    NodeRow(
                        node_id=node_id, state=state, joined_at_ms=5, offer={}, offer_signature="", offer_sequence=1
                    )
                )
            await session.flush()
            for node_id, detail in details.items():
                for at_ms, then, why in ((7, "suspended", "older"), (8, "suspended", detail), (9, "active", "later")):
                    session.add(NodeEventRow(node_id=node_id, at_ms=at_ms, data={"state": then, "detail": why}))
                    await session.flush()
            for node_id in ("banned", "both"):
                session.add(BanRow(kind="node", subject=node_id, because="scans", at_ms=10))
        await migrate(engine, "0033")
        await upgrade(engine)
        async with Sessions(engine)() as session:
            rows = list(await session.scalars(select(NodeRow)))
        found = {row.node_id: [(each.by, each.because, each.since_ms) for each in suspensions_of(row)] for row in rows}
    finally:
        await engine.dispose()
    ban_of_10 = ("ban", "scans", 10)
    assert found == {
        "person": [("operator", "smoke", 8)],
        "banned": [ban_of_10],
        "both": [ban_of_10, ("operator", "smoke", 8)],
        "proof": [("proof", "wrong digests", 8)],
        "forgotten": [("operator", "why is not kept any more", 5)],
        "active": [],
    }
