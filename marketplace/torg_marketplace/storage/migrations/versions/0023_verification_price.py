"""What of a lease's price pays its verification.

Revision ID: 0023
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0023"
down_revision: str | None = "0022"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("verification_amount", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("leases") as table:
        table.alter_column("verification_amount", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.drop_column("verification_amount")
