"""An attempt may have several leases: gangs.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("rank", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("size", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("useful_from_ms", sa.BigInteger(), nullable=True))
        table.drop_index("ix_leases_job_attempt")
        table.create_index("ix_leases_job_attempt_rank", ["job_id", "attempt", "rank"], unique=True)
    op.execute("UPDATE leases SET useful_from_ms = started_at_ms")
    with op.batch_alter_table("leases") as table:
        table.alter_column("rank", server_default=None)
        table.alter_column("size", server_default=None)


def downgrade() -> None:
    """Fails while there are attempts with several leases: an older release could not tell them apart."""
    with op.batch_alter_table("leases") as table:
        table.drop_index("ix_leases_job_attempt_rank")
        table.create_index("ix_leases_job_attempt", ["job_id", "attempt"], unique=True)
        table.drop_column("useful_from_ms")
        table.drop_column("size")
        table.drop_column("rank")
