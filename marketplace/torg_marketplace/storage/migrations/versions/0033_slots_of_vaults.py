"""How far the chain was when it was last heard of a vault: older answers prove nothing.

Revision ID: 0033
Revises: 0032
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0033"
down_revision: str | None = "0032"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("vaults") as table:
        table.add_column(sa.Column("chain_slot", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("vaults") as table:
        table.drop_column("chain_slot")
