"""Tables of what nodes have at stake, and of what was taken of it."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, Text
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
