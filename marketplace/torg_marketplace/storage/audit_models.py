"""Tables of what nodes have at stake, of what was taken of it, and of the evidence of replays."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Amount, Base, DigestText, Json, Key, Ms, State


class CollateralRow(Base):
    """The collateral that a node's newest offer names, as the chain showed it (finalized). `counted`: what of it can be taken;
    0 with the reason in `problem` when it does not count."""

    __tablename__ = "collaterals"

    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"), primary_key=True)
    address: Mapped[Key] = mapped_column(index=True)
    counted: Mapped[Amount] = mapped_column(default=0)
    problem: Mapped[str] = mapped_column(Text, default="")
    seen_at_ms: Mapped[Ms] = mapped_column(default=0)


class SlashRow(Base):
    """One amount that is taken of a node's collateral for one lease, and given to that lease's client: in two steps on chain, a day apart.

    `evidence_root` is the digest of `evidence`, on chain for good. `roots_before`: of the collateral when the proposal was seen there;
    what its roots are afterwards says whether it was executed.
    """

    __tablename__ = "slashes"
    __table_args__ = (Index("ix_slashes_collateral_state", "collateral", "state"),)

    slash_id: Mapped[Key] = mapped_column(primary_key=True)
    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"), unique=True)
    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"), index=True)
    collateral: Mapped[Key]
    client_vault: Mapped[Key]
    amount: Mapped[Amount]
    evidence: Mapped[Json]
    evidence_root: Mapped[DigestText]
    state: Mapped[State]
    roots_before: Mapped[str] = mapped_column(Text, default="")  # hex
    execute_at_s: Mapped[Ms] = mapped_column(default=0)  # by the chain's clock
    created_at_ms: Mapped[Ms]
    moved_at_ms: Mapped[Ms]
    sent_at_ms: Mapped[Ms] = mapped_column(default=0)  # of the newest transaction for the move that is waited for
    detail: Mapped[str] = mapped_column(Text, default="")


class ReplayCheckRow(Base):
    """One segment of a lease that is executed again: because it was drawn for an audit, or (`known`) to see whether who executes it does so.

    `start`, `end`: CheckpointRef; `start` None: from nothing; `end` None: to the outputs, whose model is `model`. `known`: what we have made
    of it ourselves; such a segment starts from an altered checkpoint, so that what its lease handed over is the wrong answer.
    """

    __tablename__ = "replay_checks"
    __table_args__ = (
        Index("ix_replay_checks_lease", "lease_id", "segment"),
        Index("ix_replay_checks_verdict", "verdict", "purpose"),
    )

    check_id: Mapped[Key] = mapped_column(primary_key=True)
    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"))
    purpose: Mapped[State]  # "audit", "planted"
    segment: Mapped[int]
    start: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    end: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    model: Mapped[DigestText | None]
    known: Mapped[DigestText | None]
    verdict: Mapped[State] = mapped_column(default="")  # "passed", "failed", "void" (nobody is blamed); empty: not yet
    detail: Mapped[str] = mapped_column(Text, default="")
    created_at_ms: Mapped[Ms]
    decided_at_ms: Mapped[Ms | None]


class ReplayAnswerRow(Base):
    """What one who executed a segment again made of it. `node_id` None: we ourselves. `state`: open, answered, none (it came to nothing)."""

    __tablename__ = "replay_answers"

    answer_id: Mapped[Key] = mapped_column(primary_key=True)
    check_id: Mapped[Key] = mapped_column(ForeignKey("replay_checks.check_id"), index=True)
    job_id: Mapped[Key | None] = mapped_column(ForeignKey("jobs.job_id"), unique=True)
    lease_id: Mapped[Key | None] = mapped_column(ForeignKey("leases.lease_id"))
    node_id: Mapped[Key | None] = mapped_column(ForeignKey("nodes.node_id"), index=True)
    payout_address: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[State]
    answer: Mapped[DigestText | None]  # the weights that were handed over
    distance: Mapped[str | None] = mapped_column(String(32))  # a decimal number
    bit_equal: Mapped[bool] = mapped_column(default=False)
    outvoted: Mapped[bool] = mapped_column(default=False)
    detail: Mapped[str] = mapped_column(Text, default="")
    created_at_ms: Mapped[Ms]
    answered_at_ms: Mapped[Ms | None]
