"""What was learned of a class's walks through memory, when a unit of it was asked.

Revision ID: 0027
Revises: 0026
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0027"
down_revision: str | None = "0026"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("hardware_proofs") as table:
        table.add_column(sa.Column("walk_permille", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("hardware_proofs") as table:
        table.drop_column("walk_permille")
