"""What every table shares: the declarative base, naming of constraints (so that migrations can name them), column types.

Types are chosen to mean the same on SQLite and PostgreSQL. Amounts that may reach u64 are `Amount`: SQLite's and PostgreSQL's
integers end at 2**63 - 1, which every amount that the marketplace accepts stays below (checked where amounts come in).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, MetaData, String, inspect
from sqlalchemy.orm import DeclarativeBase, mapped_column

MAX_AMOUNT = 2**63 - 1

_NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Ms = Annotated[int, mapped_column(BigInteger)]  # milliseconds: a time since the epoch or a duration
Amount = Annotated[int, mapped_column(BigInteger)]  # base units
Key = Annotated[str, mapped_column(String(64))]  # ids, public keys
DigestText = Annotated[str, mapped_column(String(71))]
State = Annotated[str, mapped_column(String(16))]
Json = Annotated[dict[str, Any], mapped_column(JSON)]
JsonList = Annotated[list[Any], mapped_column(JSON)]


class Base(DeclarativeBase):
    """A new row has what its columns have by default from the beginning, not only once it is written."""

    metadata = MetaData(naming_convention=_NAMING)

    def __init__(self, **values: Any) -> None:
        columns, defaults = _columns(type(self)), _defaults(type(self))
        if unknown := values.keys() - columns:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        # As loading a row does, and not one attribute after the other: nobody asks a new row what it was before.
        row = self.__dict__
        for name, default in defaults:
            if name not in values:
                row[name] = default()
        row.update(values)


@cache
def _columns(table: type[Base]) -> frozenset[str]:
    return frozenset(inspect(table).columns.keys())


@cache
def _defaults(table: type[Base]) -> tuple[tuple[str, Callable[[], Any]], ...]:
    columns = ((name, column.default) for name, column in inspect(table).columns.items())
    return tuple((name, partial(_default, default)) for name, default in columns if default is not None)


def _default(default: Any) -> Any:
    return default.arg(None) if default.is_callable else default.arg
