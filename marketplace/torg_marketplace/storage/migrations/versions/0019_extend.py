"""How long an extended job may last.

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("max_duration_ms", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("cap_from_ms", sa.BigInteger(), nullable=True))
    op.execute("UPDATE jobs SET cap_from_ms = created_at_ms")
    with op.batch_alter_table("jobs") as table:
        table.alter_column("cap_from_ms", existing_type=sa.BigInteger(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("cap_from_ms")
        table.drop_column("max_duration_ms")
