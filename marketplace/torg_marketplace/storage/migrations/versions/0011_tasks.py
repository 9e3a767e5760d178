"""Tasks of jobs of several: where each stands, and how much of its log is there.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None

_COLUMNS = ("tasks", "task_log_bytes")


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        for name in _COLUMNS:
            table.add_column(sa.Column(name, sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("leases") as table:
        for name in _COLUMNS:
            table.alter_column(name, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        for name in _COLUMNS:
            table.drop_column(name)
