"""Proofs of hardware and what they established of each node.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Nodes of before are unproven, and are asked soon."""
    with op.batch_alter_table("nodes") as table:
        table.add_column(sa.Column("proof", sa.JSON(), nullable=False, server_default="{}"))
        table.add_column(sa.Column("proof_due_ms", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("nodes") as table:
        for name in ("proof", "proof_due_ms"):
            table.alter_column(name, server_default=None)
    op.create_table(
        "hardware_proofs",
        sa.Column("proof_id", sa.String(length=64), nullable=False),
        sa.Column("window_id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("busy", sa.Boolean(), nullable=False),
        sa.Column("established_gops", sa.BigInteger(), nullable=False),
        sa.Column("tolerance_permille", sa.Integer(), nullable=False),
        sa.Column("wanted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("challenged_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("chain_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("walk_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("judged_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("challenge", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("root", sa.String(length=71), nullable=True),
        sa.Column("lanes", sa.String(length=400_000), nullable=True),
        sa.Column("arithmetic", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.JSON(), nullable=False),
        sa.Column("lanes_checked", sa.JSON(), nullable=False),
        sa.Column("opening", sa.JSON(), nullable=False),
        sa.Column("finding", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("proof_id", name=op.f("pk_hardware_proofs")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_hardware_proofs_node_id_nodes")),
    )
    op.create_index("ix_hardware_proofs_node", "hardware_proofs", ["node_id", "wanted_at_ms"])
    op.create_index("ix_hardware_proofs_state", "hardware_proofs", ["state", "due_at_ms"])
    op.create_index(op.f("ix_hardware_proofs_window_id"), "hardware_proofs", ["window_id"])


def downgrade() -> None:
    op.drop_table("hardware_proofs")
    with op.batch_alter_table("nodes") as table:
        for name in ("proof_due_ms", "proof"):
            table.drop_column(name)
