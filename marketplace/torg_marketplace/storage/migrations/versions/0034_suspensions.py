"""Why a node is suspended, with the node: it was only in its events, of which retention removes old ones, and of two causes the second was lost.

Revision ID: 0034
Revises: 0033
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0034"
down_revision: str | None = "0033"
branch_labels: str | None = None
depends_on: str | None = None

_NODES = sa.table(
    "nodes",
    sa.column("node_id", sa.String),
    sa.column("state", sa.String),
    sa.column("joined_at_ms", sa.BigInteger),
    sa.column("proof", sa.JSON),
    sa.column("suspensions", sa.JSON),
)
_EVENTS = sa.table(
    "node_events",
    sa.column("id", sa.BigInteger),
    sa.column("node_id", sa.String),
    sa.column("at_ms", sa.BigInteger),
    sa.column("data", sa.JSON),
)
_BANS = sa.table(
    "bans",
    sa.column("kind", sa.String),
    sa.column("subject", sa.String),
    sa.column("because", sa.Text),
    sa.column("at_ms", sa.BigInteger),
)
_PERSON, _BANNED = "by the operator: ", "banned: "


def upgrade() -> None:
    with op.batch_alter_table("nodes") as table:
        table.add_column(sa.Column("suspensions", sa.JSON(), nullable=False, server_default="[]"))
    connection = op.get_bind()
    suspended = sa.select(_NODES.c.node_id, _NODES.c.joined_at_ms, _NODES.c.proof).where(_NODES.c.state == "suspended")
    for node_id, joined_at_ms, proof in connection.execute(suspended).all():
        stand = _causes(connection, node_id, joined_at_ms, proof or {})
        connection.execute(sa.update(_NODES).where(_NODES.c.node_id == node_id).values(suspensions=stand))


def downgrade() -> None:
    with op.batch_alter_table("nodes") as table:
        table.drop_column("suspensions")


def _causes(connection: sa.Connection, node_id: str, joined_at_ms: int, proof: dict[str, Any]) -> list[dict[str, Any]]:
    """As its ban, its proofs and its newest event tell; where that one is not kept any more, it was a person."""
    ban = sa.select(_BANS.c.because, _BANS.c.at_ms).where(_BANS.c.kind == "node", _BANS.c.subject == node_id)
    found = [{"by": "ban", "because": because, "since_ms": at_ms} for because, at_ms in connection.execute(ban)]
    said = sa.select(_EVENTS.c.at_ms, _EVENTS.c.data["detail"].as_string()).where(
        _EVENTS.c.node_id == node_id, _EVENTS.c.data["state"].as_string() == "suspended"
    )
    newest = connection.execute(said.order_by(_EVENTS.c.id.desc()).limit(1)).first()
    since_ms, detail = newest or (joined_at_ms, f"{_PERSON}{_BANNED if found else 'why is not kept any more'}")
    if not detail.startswith(_PERSON):
        found.append({"by": "proof", "because": detail or str(proof.get("detail", "")), "since_ms": since_ms})
    elif not (found and detail.startswith(_PERSON + _BANNED)):
        found.append({"by": "operator", "because": detail.removeprefix(_PERSON), "since_ms": since_ms})
    return found
