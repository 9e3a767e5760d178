"""Reference prices per class and minute.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "reference_prices",
        sa.Column("gpu_class", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("price_per_gpu_hour", sa.BigInteger(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("best_bid", sa.BigInteger(), nullable=True),
        sa.Column("best_ask", sa.BigInteger(), nullable=True),
        sa.Column("gpus_offered", sa.Integer(), nullable=False),
        sa.Column("gpus_wanted", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("gpu_class", "at_ms", name=op.f("pk_reference_prices")),
    )
    op.create_index(op.f("ix_reference_prices_at_ms"), "reference_prices", ["at_ms"])


def downgrade() -> None:
    op.drop_index(op.f("ix_reference_prices_at_ms"), table_name="reference_prices")
    op.drop_table("reference_prices")
