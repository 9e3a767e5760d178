"""Refunds: what was given back of a lease's price, and what of it is credit.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None

_AMOUNTS = (("vaults", "credit"), ("holds", "refunded"), ("payouts", "refunded"))


def upgrade() -> None:
    for table_name, column in _AMOUNTS:
        with op.batch_alter_table(table_name) as table:
            table.add_column(sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))
        with op.batch_alter_table(table_name) as table:
            table.alter_column(column, server_default=None)
    op.create_table(
        "refunds",
        sa.Column("refund_id", sa.String(96), nullable=False),
        sa.Column("cause", sa.String(32), nullable=False),
        sa.Column("lease_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("vault", sa.String(64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("from_node", sa.BigInteger(), nullable=False),
        sa.Column("from_fees", sa.BigInteger(), nullable=False),
        sa.Column("outstanding", sa.BigInteger(), nullable=False),
        sa.Column("postings", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("signed", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_refunds_vault_vaults")),
        sa.PrimaryKeyConstraint("refund_id", name=op.f("pk_refunds")),
    )
    op.create_index("ix_refunds_client", "refunds", ["client", "at_ms"])
    op.create_index("ix_refunds_lease", "refunds", ["lease_id"])
    op.create_index("ix_refunds_node", "refunds", ["node_id", "at_ms"])
    op.create_index("ix_refunds_vault", "refunds", ["vault"])


def downgrade() -> None:
    op.drop_table("refunds")
    for table_name, column in reversed(_AMOUNTS):
        with op.batch_alter_table(table_name) as table:
            table.drop_column(column)
