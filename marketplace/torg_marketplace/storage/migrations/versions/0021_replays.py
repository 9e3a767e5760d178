"""Segments that are executed again, by whom, and what came of it.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("checks_job", sa.String(64), nullable=True))
    op.create_index("ix_jobs_checks_job", "jobs", ["checks_job"])
    op.create_table(
        "replay_checks",
        sa.Column("check_id", sa.String(64), nullable=False),
        sa.Column(
            "lease_id",
            sa.String(64),
            sa.ForeignKey("leases.lease_id", name="fk_replay_checks_lease_id_leases"),
            nullable=False,
        ),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("start", sa.JSON(), nullable=True),
        sa.Column("end", sa.JSON(), nullable=True),
        sa.Column("model", sa.String(71), nullable=True),
        sa.Column("known", sa.String(71), nullable=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("check_id", name="pk_replay_checks"),
    )
    op.create_index("ix_replay_checks_lease", "replay_checks", ["lease_id", "segment"])
    op.create_index("ix_replay_checks_verdict", "replay_checks", ["verdict", "purpose"])
    _create_answers()


def _create_answers() -> None:
    op.create_table(
        "replay_answers",
        sa.Column("answer_id", sa.String(64), nullable=False),
        sa.Column(
            "check_id",
            sa.String(64),
            sa.ForeignKey("replay_checks.check_id", name="fk_replay_answers_check_id_replay_checks"),
            nullable=False,
        ),
        sa.Column(
            "job_id", sa.String(64), sa.ForeignKey("jobs.job_id", name="fk_replay_answers_job_id_jobs"), nullable=True
        ),
        sa.Column(
            "lease_id",
            sa.String(64),
            sa.ForeignKey("leases.lease_id", name="fk_replay_answers_lease_id_leases"),
            nullable=True,
        ),
        sa.Column(
            "node_id",
            sa.String(64),
            sa.ForeignKey("nodes.node_id", name="fk_replay_answers_node_id_nodes"),
            nullable=True,
        ),
        sa.Column("payout_address", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", sa.String(71), nullable=True),
        sa.Column("distance", sa.String(32), nullable=True),
        sa.Column("bit_equal", sa.Boolean(), nullable=False),
        sa.Column("outvoted", sa.Boolean(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("answered_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("answer_id", name="pk_replay_answers"),
        sa.UniqueConstraint("job_id", name="uq_replay_answers_job_id"),
    )
    op.create_index("ix_replay_answers_check_id", "replay_answers", ["check_id"])
    op.create_index("ix_replay_answers_node_id", "replay_answers", ["node_id"])


def downgrade() -> None:
    op.drop_table("replay_answers")
    op.drop_table("replay_checks")
    op.drop_index("ix_jobs_checks_job", "jobs")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("checks_job")
