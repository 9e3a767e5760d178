"""Nodes that a job does not come to for a while.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("paused_nodes", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("paused_nodes", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("paused_nodes")
