"""Every module with tables, imported once, so that `Base.metadata` is whole for migrations and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Mapper
from sqlalchemy.orm.unitofwork import UOWTransaction, _DeleteAll, _SaveUpdateAll

from torg_marketplace.storage import (
    account_models,
    admission_models,
    audit_models,
    case_models,
    data_models,
    models,
    money_models,
    proof_models,
    volume_models,
    webhook_models,
)
from torg_marketplace.storage.base import Base

TABLE_MODULES = (
    models,
    money_models,
    account_models,
    webhook_models,
    proof_models,
    data_models,
    audit_models,
    case_models,
    volume_models,
    admission_models,
)

metadata = Base.metadata
_SAVE: Any = _SaveUpdateAll  # untyped there: what a flush does with all rows of a table
_DELETE: Any = _DeleteAll


def know_parents() -> None:
    """SQLAlchemy writes rows in the order of relationships. These tables do without them; so that a transaction need not write a job before
    it adds its hold, it is told which tables refer to which. Relationships that nobody reads would say the same, but are looked through for
    every row that is added or changed. Safe to repeat."""
    mappers: dict[object, Mapper[Base]] = {mapper.local_table: mapper for mapper in Base.registry.mappers}
    for child in mappers.values():
        for parent in {mappers[key.column.table] for key in child.local_table.foreign_keys} - {child}:
            _tell(child, _Order(parent, child, other=parent))
            _tell(parent, _Order(parent, child, other=child))


@dataclass(frozen=True, slots=True)
class _Order:
    """Of two tables in one flush: told to each of them, whoever comes second finds the other there."""

    parent: Mapper[Base]
    child: Mapper[Base]
    other: Mapper[Base]

    def per_property_preprocessors(self, flush: UOWTransaction) -> None:
        """SQLAlchemy calls it, by this name, when rows of a table join a flush."""
        if self.other in flush.mappers:
            flush.dependencies.add((_SAVE(flush, self.parent), _SAVE(flush, self.child)))
            flush.dependencies.add((_DELETE(flush, self.child), _DELETE(flush, self.parent)))


def _tell(mapper: Mapper[Base], order: _Order) -> None:
    told: list[Any] = mapper._dependency_processors  # noqa: SLF001 - no other way that costs nothing per row
    if order not in told:
        told.append(order)
