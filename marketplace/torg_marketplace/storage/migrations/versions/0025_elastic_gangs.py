"""Members that leave an elastic gang, and what the others lose with them.

Revision ID: 0025
Revises: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0025"
down_revision: str | None = "0024"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("left_at_ms", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("losses", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.drop_column("losses")
        table.drop_column("left_at_ms")
