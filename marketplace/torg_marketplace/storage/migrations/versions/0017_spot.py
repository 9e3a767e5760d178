"""Spot leases: which they are, whom they made room for, and how often a job did.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("preemptions", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("spot", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("preempted_for", sa.String(64), nullable=True))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("preemptions", server_default=None)
    with op.batch_alter_table("leases") as table:
        table.alter_column("spot", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.drop_column("preempted_for")
        table.drop_column("spot")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("preemptions")
