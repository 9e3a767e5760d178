"""Blobs whose bytes are being deleted.

Revision ID: 0032
Revises: 0031
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0032"
down_revision: str | None = "0031"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "leaving_blobs",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_leaving_blobs"),
    )


def downgrade() -> None:
    op.drop_table("leaving_blobs")
