"""What a node's leases came to, and what it ran lately.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Leases of before are not counted: everybody starts with the benefit of the doubt."""
    with op.batch_alter_table("nodes") as table:
        table.add_column(sa.Column("leases_kept", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("leases_broken", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("warm", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("nodes") as table:
        for name in ("leases_kept", "leases_broken", "warm"):
            table.alter_column(name, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("nodes") as table:
        for name in ("warm", "leases_broken", "leases_kept"):
            table.drop_column(name)
