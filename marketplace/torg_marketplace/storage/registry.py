"""Every module with tables, imported once, so that `Base.metadata` is whole for migrations and tests."""

from __future__ import annotations

from sqlalchemy.orm import Mapper, relationship

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


def know_parents() -> None:
    """SQLAlchemy writes rows in the order of relationships. These tables do without them; so that a transaction need not write a job before
    it adds its hold, each foreign key is told to it as one that nobody reads. Safe to repeat."""
    mappers: dict[object, Mapper[Base]] = {mapper.local_table: mapper for mapper in Base.registry.mappers}
    for mapper in mappers.values():
        for key in mapper.local_table.foreign_keys:
            name = f"_parent_of_{key.parent.name}"
            if not mapper.has_property(name):
                parent = mappers[key.column.table]
                mapper.add_property(name, relationship(parent, foreign_keys=[key.parent], lazy="raise"))
