"""Every module with tables, imported once, so that `Base.metadata` is whole for migrations and tests."""

from __future__ import annotations

from torg_marketplace.storage import (
    account_models,
    audit_models,
    case_models,
    data_models,
    models,
    money_models,
    proof_models,
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
)

metadata = Base.metadata
