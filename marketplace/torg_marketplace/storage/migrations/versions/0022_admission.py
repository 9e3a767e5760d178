"""Signatures that were used, and what callers may still ask, for all API processes.

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0022"
down_revision: str | None = "0021"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "request_nonces",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(128), nullable=False),
        sa.Column("created_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "nonce", name="pk_request_nonces"),
    )
    on_postgresql = op.get_context().dialect.name == "postgresql"
    op.create_table(
        "request_buckets",
        sa.Column("caller", sa.String(128), nullable=False),
        sa.Column("tokens", sa.Float(53), nullable=False),
        sa.Column("granted", sa.Integer(), nullable=False),
        sa.Column("counted_at_s", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("caller", name="pk_request_buckets"),
        prefixes=["UNLOGGED"] if on_postgresql else [],
    )


def downgrade() -> None:
    op.drop_table("request_buckets")
    op.drop_table("request_nonces")
