"""When named data was last used.

Revision ID: 0024
Revises: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0024"
down_revision: str | None = "0023"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("data_names") as table:
        table.add_column(sa.Column("used_at_ms", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE data_names SET used_at_ms = named_at_ms")
    with op.batch_alter_table("data_names") as table:
        table.alter_column("used_at_ms", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("data_names") as table:
        table.drop_column("used_at_ms")
