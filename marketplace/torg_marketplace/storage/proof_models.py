"""Proofs of hardware: everything that was asked, answered, seen and concluded, enough to judge each one again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Base, Json, JsonList, Key, Ms, State


class HardwareProofRow(Base):
    """One proof of one unit. `state`: wanted, ready, challenged, asked (rows), opened, judged. Times are the marketplace's."""

    __tablename__ = "hardware_proofs"
    __table_args__ = (
        Index("ix_hardware_proofs_node", "node_id", "wanted_at_ms"),
        Index("ix_hardware_proofs_state", "state", "due_at_ms"),
    )

    proof_id: Mapped[Key] = mapped_column(primary_key=True)
    window_id: Mapped[Key] = mapped_column(index=True)
    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"))
    unit: Mapped[str] = mapped_column(String(16))
    state: Mapped[State]
    busy: Mapped[bool] = mapped_column(default=False)  # the node worked for a client
    established_gops: Mapped[Ms] = mapped_column(default=0)  # when it was challenged
    tolerance_permille: Mapped[int] = mapped_column(default=1300)
    walk_permille: Mapped[
        int | None
    ]  # learned limit of its class when it was challenged (rules/walk_limit.py); None: nothing learned
    wanted_at_ms: Mapped[Ms]
    due_at_ms: Mapped[Ms]  # when the step that is waited for is overdue
    challenged_at_ms: Mapped[Ms | None]
    chain_at_ms: Mapped[Ms | None]
    walk_at_ms: Mapped[Ms | None]
    opened_at_ms: Mapped[Ms | None]
    judged_at_ms: Mapped[Ms | None]
    challenge: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # ProofChallenge
    root: Mapped[str | None] = mapped_column(String(71))
    lanes: Mapped[str | None] = mapped_column(String(400_000))
    arithmetic: Mapped[str] = mapped_column(String(64), default="")
    rows: Mapped[JsonList] = mapped_column(default=list)  # drawn after the commitments
    lanes_checked: Mapped[JsonList] = mapped_column(default=list)
    opening: Mapped[JsonList] = mapped_column(default=list)  # OpenedBlock
    finding: Mapped[Json] = mapped_column(default=dict)
