"""Up to where some of a job's events are not kept any more; which idempotency keys are old.

Revision ID: 0031
Revises: 0030
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0031"
down_revision: str | None = "0030"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("removed_event_id", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("removed_until_ms", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at_ms"])


def downgrade() -> None:
    op.drop_index("ix_idempotency_keys_created", "idempotency_keys")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("removed_until_ms")
        table.drop_column("removed_event_id")
