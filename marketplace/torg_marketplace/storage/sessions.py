"""Sessions that keep the rows that they have met until they are closed: asking for one again is no question to the database, and no switch of
greenlets. SQLAlchemy's own sessions forget a row as soon as nobody else holds it, and look through all rows for those of one table.

What a transaction changes is written at its end, or before a query that could see it; a row that is asked for by its key cannot, so
that asking writes nothing yet. Parents are written before their children, by the tables' foreign keys. Rows that nobody asks for again in their
transaction need no objects (`write`): those of one table are one statement, after everything else.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Insert, Select, bindparam, event, insert, inspect, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from torg_marketplace.storage.base import Base

R = TypeVar("R", bound=Base)
_Key = tuple[Any, ...]


class KeepingSession(Session):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._met: dict[type[Base], dict[_Key, Base]] = defaultdict(dict)  # rows of the database, by table and key
        self._added: dict[type[Base], dict[Any, Base]] = defaultdict(dict)  # not written yet
        self._absent: set[tuple[type[Base], _Key]] = set()
        # of rows without objects, not written yet
        self._values: dict[type[Base], list[dict[str, Any]]] = defaultdict(list)

    def write(self, table: type[Base], values: dict[str, Any]) -> None:
        """A row with all of its columns but those that the database fills in. Queries and `get` find it, for which it is written first; `known`
        does not. Others may refer to no such row: it is written after them."""
        self._values[table].append(values)
        if self._absent:
            self._absent.discard((table, tuple(values.get(name) for name in _key_columns(table))))

    def flush(self, objects: Any = None) -> None:
        super().flush(objects)
        if self._values:
            values, self._values = self._values, defaultdict(list)
            connection = self.connection()
            for table, rows in values.items():
                connection.execute(_insert(table), rows)

    def forget_values(self) -> None:
        """When what was done is undone: what was before a savepoint was written as it began."""
        self._values.clear()

    def known(self, table: type[R], key: Any) -> R | None:
        """A row that was loaded or added in this transaction."""
        parts = _parts(key)
        found: Any = self._met[table].get(parts)
        if found is None:
            found = self._added[table].get(parts)
        return None if found is None or instance_state(found).expired else found

    def loaded(self, table: type[R]) -> list[R]:
        """All rows of a table that were loaded or added, as they stand."""
        rows: list[Any] = [*self._met[table].values(), *self._added[table].values()]
        return [row for row in rows if not instance_state(row).expired]

    def note_absent(self, table: type[R], key: Any) -> None:
        """Of a row that was looked for in this transaction and is not there."""
        self._absent.add((table, _parts(key)))

    def is_absent(self, table: type[R], key: Any) -> bool:
        return (table, _parts(key)) in self._absent

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        if not any(options.get(name) for name in ("populate_existing", "with_for_update")):
            row = self.known(entity, ident)
            if row is not None or self.is_absent(entity, ident):
                return row
            if self._values.get(entity):
                self.flush()
            if not any(options.values()):
                with self.no_autoflush:
                    return self.scalars(_by_key(entity), _parameters(ident)).one_or_none()
            with self.no_autoflush:
                return super().get(entity, ident, **options)
        return super().get(entity, ident, **options)

    def get_one(self, entity: Any, ident: Any, **options: Any) -> Any:
        row = self.get(entity, ident, **options)
        if row is None:
            raise NoResultFound(f"no {entity.__name__} {ident!r}")
        return row


class KeepingAsyncSession(AsyncSession):
    sync_session_class = KeepingSession
    sync_session: KeepingSession

    def write(self, table: type[Base], **values: Any) -> None:
        """See `KeepingSession.write`."""
        self.sync_session.write(table, values)

    async def get(self, entity: type[R], ident: Any, **options: Any) -> R | None:  # type: ignore[override]  # our rows only
        if not options:
            row = self.sync_session.known(entity, ident)
            if row is not None or self.sync_session.is_absent(entity, ident):
                return row
        return await super().get(entity, ident, **options)

    async def get_one(self, entity: type[R], ident: Any, **options: Any) -> R:  # type: ignore[override]  # our rows only
        if not options and (row := self.sync_session.known(entity, ident)) is not None:
            return row
        return await super().get_one(entity, ident, **options)


@cache
def _by_key(table: type[Base]) -> Select[Any]:
    """Built once: to build it takes SQLAlchemy longer than to ask it, and its own `get` builds one each time."""
    columns = enumerate(inspect(table).primary_key)
    return select(table).where(*(column == bindparam(f"key_{number}") for number, column in columns))


@cache
def _insert(table: type[Base]) -> Insert:
    """Into the table itself: for its class SQLAlchemy would make objects."""
    return insert(table.metadata.tables[table.__tablename__])


def _parameters(key: Any) -> dict[str, Any]:
    return {f"key_{number}": part for number, part in enumerate(_parts(key))}


def _parts(key: Any) -> _Key:
    return key if isinstance(key, tuple) else (key,)


@cache
def _key_columns(table: type[Base]) -> tuple[str, ...]:
    mapper = inspect(table)
    return tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)


def _key_of(row: Base) -> Any:
    """What it is known by; its own identity where the database gives it a key when it is written."""
    key = tuple(row.__dict__.get(name) for name in _key_columns(type(row)))
    return id(row) if None in key else key


@event.listens_for(KeepingSession, "before_commit")
def _write_the_rest(session: KeepingSession) -> None:
    session.flush()


@event.listens_for(KeepingSession, "after_soft_rollback")
def _undo(session: KeepingSession, _undone: object) -> None:
    session.forget_values()


@event.listens_for(KeepingSession, "transient_to_pending")
def _add(session: KeepingSession, row: Base) -> None:
    session._added[type(row)][_key_of(row)] = row  # noqa: SLF001 - its own part


@event.listens_for(KeepingSession, "pending_to_transient")
def _drop(session: KeepingSession, row: Base) -> None:
    _forget_added(session, row)


@event.listens_for(KeepingSession, "pending_to_persistent")
def _keep_written(session: KeepingSession, row: Base) -> None:
    _forget_added(session, row)
    _keep(session, row)


@event.listens_for(KeepingSession, "loaded_as_persistent")
def _keep(session: KeepingSession, row: Base) -> None:
    session._met[type(row)][_identity_of(row)] = row  # noqa: SLF001


@event.listens_for(KeepingSession, "persistent_to_deleted")
@event.listens_for(KeepingSession, "persistent_to_detached")
@event.listens_for(KeepingSession, "persistent_to_transient")
def _forget(session: KeepingSession, row: Base) -> None:
    met = session._met[type(row)]  # noqa: SLF001
    for key in [key for key, known in met.items() if known is row]:
        del met[key]


@event.listens_for(KeepingSession, "deleted_to_persistent")
def _keep_after_all(session: KeepingSession, row: Base) -> None:
    _keep(session, row)


def _forget_added(session: KeepingSession, row: Base) -> None:
    added = session._added[type(row)]  # noqa: SLF001
    for key in (_key_of(row), id(row)):
        if added.get(key) is row:
            del added[key]


def _identity_of(row: Base) -> _Key:
    key: Any = instance_state(row).key
    return tuple(key[1])
