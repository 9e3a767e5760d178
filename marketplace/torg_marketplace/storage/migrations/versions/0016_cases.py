"""What leases were sold as; disputes, bans, reports of abuse.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("sold_as", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("leases") as table:
        table.alter_column("sold_as", server_default=None)
    op.create_table(
        "disputes",
        sa.Column("dispute_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("refunded", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_disputes_job_id_jobs")),
        sa.PrimaryKeyConstraint("dispute_id", name=op.f("pk_disputes")),
        sa.UniqueConstraint("job_id", name=op.f("uq_disputes_job_id")),
    )
    op.create_index("ix_disputes_client", "disputes", ["client"])
    op.create_index("ix_disputes_state", "disputes", ["state", "opened_at_ms"])
    op.create_table(
        "bans",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("because", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", name=op.f("pk_bans")),
    )
    op.create_table(
        "abuse_reports",
        sa.Column("report_id", sa.String(64), nullable=False),
        sa.Column("reporter", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reported_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("report_id", name=op.f("pk_abuse_reports")),
    )
    op.create_index("ix_abuse_reports_reporter", "abuse_reports", ["reporter", "state"])


def downgrade() -> None:
    for table_name in ("abuse_reports", "bans", "disputes"):
        op.drop_table(table_name)
    with op.batch_alter_table("leases") as table:
        table.drop_column("sold_as")
