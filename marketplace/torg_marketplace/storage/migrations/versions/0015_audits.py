"""What nodes have at stake, and what is taken of it after failed audits.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("nodes") as table:
        table.add_column(sa.Column("clean_leases", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE nodes SET clean_leases = leases_kept")
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("stake", sa.BigInteger(), nullable=False, server_default="0"))
    for name, column in (("nodes", "clean_leases"), ("leases", "stake")):
        with op.batch_alter_table(name) as table:
            table.alter_column(column, server_default=None)
    op.create_table(
        "collaterals",
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id", name="fk_collaterals_node_id_nodes")),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name="pk_collaterals"),
    )
    op.create_index("ix_collaterals_address", "collaterals", ["address"])
    op.create_table(
        "slashes",
        sa.Column("slash_id", sa.String(64), nullable=False),
        sa.Column(
            "lease_id",
            sa.String(64),
            sa.ForeignKey("leases.lease_id", name="fk_slashes_lease_id_leases"),
            nullable=False,
        ),
        sa.Column(
            "node_id", sa.String(64), sa.ForeignKey("nodes.node_id", name="fk_slashes_node_id_nodes"), nullable=False
        ),
        sa.Column("collateral", sa.String(64), nullable=False),
        sa.Column("client_vault", sa.String(64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("evidence_root", sa.String(71), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("roots_before", sa.Text(), nullable=False),
        sa.Column("execute_at_s", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("moved_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("slash_id", name="pk_slashes"),
        sa.UniqueConstraint("lease_id", name="uq_slashes_lease_id"),
    )
    op.create_index("ix_slashes_node_id", "slashes", ["node_id"])
    op.create_index("ix_slashes_collateral_state", "slashes", ["collateral", "state"])


def downgrade() -> None:
    op.drop_table("slashes")
    op.drop_table("collaterals")
    with op.batch_alter_table("leases") as table:
        table.drop_column("stake")
    with op.batch_alter_table("nodes") as table:
        table.drop_column("clean_leases")
