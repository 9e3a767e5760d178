"""How the declared ports of a lease stand.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("ports", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("leases") as table:
        table.alter_column("ports", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.drop_column("ports")
