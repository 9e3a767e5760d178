"""Migrations, in order, from the first day. `env` is Alembic's; start them with `torg_marketplace.storage.schema`."""
