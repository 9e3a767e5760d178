"""Questions about as many keys as there are, in one and the same statement.

`column.in_([...])` is another statement for each number of keys: SQLAlchemy writes it anew at each execution, and each connection has the
server prepare and plan each of them. Here all keys are one parameter, a list.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Dialect, String, bindparam
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from torg_marketplace.storage.json_text import to_text


def among(column: InstrumentedAttribute[str], parameter: str) -> ColumnElement[bool]:
    """Whether the column is one of those that are given, a collection of strings, as `parameter` when the statement is executed."""
    return _Among(column, bindparam(parameter, type_=_Strings()))


class _Strings(TypeDecorator[Collection[str]]):
    """An array where the database has such, else JSON."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(String()) if dialect.name == "postgresql" else String())

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> Any:
        strings = list(value or ())
        return strings if dialect.name == "postgresql" else to_text(strings)


class _Among(FunctionElement[bool]):
    """Of no type: of a Boolean SQLite would be asked whether it equals 1, and look for no index then."""

    name = "among"
    inherit_cache = True


@compiles(_Among)
def _in_json(element: _Among, compiler: SQLCompiler, **how: Any) -> str:
    column, strings = (compiler.process(clause, **how) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({strings}))"  # noqa: S608 - of what SQLAlchemy has compiled


@compiles(_Among, "postgresql")
def _in_array(element: _Among, compiler: SQLCompiler, **how: Any) -> str:
    column, strings = (compiler.process(clause, **how) for clause in element.clauses)
    return f"{column} = ANY ({strings})"
