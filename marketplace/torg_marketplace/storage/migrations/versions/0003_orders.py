"""Settlements keep the whole order: whose token accounts, which payouts.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Captures of before were not given to payees as orders, so nothing needs to be known of the old ones."""
    with op.batch_alter_table("settlements") as table:
        table.add_column(sa.Column("token_accounts", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("payout_ids", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("settlements") as table:
        table.alter_column("token_accounts", server_default=None)
        table.alter_column("payout_ids", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("settlements") as table:
        table.drop_column("payout_ids")
        table.drop_column("token_accounts")
