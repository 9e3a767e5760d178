"""Insert what is not there yet, without asking before: the table's own keys say whether it is."""

from __future__ import annotations

from functools import cache

from sqlalchemy.dialects import postgresql, sqlite

from torg_marketplace.storage.base import Base


@cache
def insert_if_new(rows: type[Base], dialect: str) -> postgresql.Insert | sqlite.Insert:
    """Into the table of these rows, as values rather than objects; what is there stays as it is. `dialect`: the database's, by name."""
    insert_into = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert_into(rows.metadata.tables[rows.__tablename__]).on_conflict_do_nothing()


@cache
def insert_or_update(rows: type[Base], dialect: str, columns: tuple[str, ...]) -> postgresql.Insert | sqlite.Insert:
    """The same; of what is there these columns are taken over."""
    table, insert_into = (
        rows.metadata.tables[rows.__tablename__],
        postgresql.insert if dialect == "postgresql" else sqlite.insert,
    )
    statement = insert_into(table)
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in columns}
    )
