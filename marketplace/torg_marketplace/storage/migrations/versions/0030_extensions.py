"""What was asked for on top of older jobs, so that it counts against the hour in which it was.

Revision ID: 0030
Revises: 0029
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0030"
down_revision: str | None = "0029"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "extensions",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("max_duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "max_duration_ms", name="pk_extensions"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_extensions_job_id_jobs"),
    )
    op.create_index("ix_extensions_account_at", "extensions", ["account", "at_ms"])


def downgrade() -> None:
    op.drop_table("extensions")
