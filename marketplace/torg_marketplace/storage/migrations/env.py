"""Alembic's entry: always given an open connection by `torg_marketplace.storage.schema`."""

from __future__ import annotations

from alembic import context

from torg_marketplace.storage.registry import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
