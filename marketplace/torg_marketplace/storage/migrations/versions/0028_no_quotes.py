"""A quote's id carries what was promised: none is kept any more. Those that are under way are forgotten, and asked for again.

Revision ID: 0028
Revises: 0027
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0028"
down_revision: str | None = "0027"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.drop_index(op.f("ix_quotes_expires_at_ms"), "quotes")
    op.drop_table("quotes")


def downgrade() -> None:
    op.create_table(
        "quotes",
        sa.Column("quote_id", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("spec_digest", sa.String(length=71), nullable=False),
        sa.Column("price_ceiling", sa.BigInteger(), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("quote_id", name=op.f("pk_quotes")),
    )
    op.create_index(op.f("ix_quotes_expires_at_ms"), "quotes", ["expires_at_ms"], unique=False)
