"""Questions about several keys are one statement for all numbers of them, find what `in` finds, and use the tables' indexes."""

from __future__ import annotations

from sqlalchemy import event, select, text
from sqlalchemy.dialects import sqlite

from tests.support.market import World
from torg_marketplace.storage.among import among
from torg_marketplace.storage.money_models import PostingRow

QUESTION = select(PostingRow.key).where(among(PostingRow.key, "keys"))
STRANGE = ["", "it's", 'a "quoted" one', "back\\slash", "{braces,commas}", "NULL", "ünïcode"]


async def test_each_number_of_keys_is_the_same_statement(world: World) -> None:
    asked: list[str] = []
    async with world.market.transaction() as unit:
        connection = await unit.session.connection()

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            asked.append(statement)

        event.listen(connection.sync_connection, "before_cursor_execute", note)
        for count in (0, 1, 2, 33):
            found = await unit.session.scalars(QUESTION, {"keys": [f"key{number}" for number in range(count)]})
            assert found.all() == []
    assert len(asked) == 4
    assert len(set(asked)) == 1


async def test_those_that_are_named_are_found_whatever_they_are_called(world: World) -> None:
    async with world.market.transaction() as unit:
        for name in [*STRANGE, "another"]:
            unit.session.write(PostingRow, key=name, cause="of a test", at_ms=1)
        await unit.session.flush()
        found = (await unit.session.scalars(QUESTION, {"keys": STRANGE})).all()
        assert sorted(found) == sorted(STRANGE)
        assert (await unit.session.scalars(QUESTION, {"keys": {"another": 1}})).all() == ["another"]
        assert (await unit.session.scalars(QUESTION, {"keys": []})).all() == []


async def test_sqlite_looks_into_the_index(world: World) -> None:
    """PostgreSQL's planner decides by what a table holds; SQLite's by the question alone."""
    statement = str(QUESTION.compile(dialect=sqlite.dialect()))
    async with world.market.reading() as unit:
        connection = await unit.session.connection()
        if connection.dialect.name != "sqlite":
            return
        plan = (await unit.session.execute(text("EXPLAIN QUERY PLAN " + statement.replace("?", "'[]'")))).all()
    assert any("SEARCH postings USING" in row[-1] for row in plan), plan
