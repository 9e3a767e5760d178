"""What a lease used beside its time.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("use", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("leases", "use")
