"""Cases that a person decides: disputes, bans, reports of abuse."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Amount, Base, Key, Ms, State


class DisputeRow(Base):
    """A client's objection to what a job cost: one per job. `share_percent` and `refunded` once it is decided."""

    __tablename__ = "disputes"
    __table_args__ = (Index("ix_disputes_client", "client"), Index("ix_disputes_state", "state", "opened_at_ms"))

    dispute_id: Mapped[Key] = mapped_column(primary_key=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), unique=True)
    client: Mapped[Key]
    reason: Mapped[str] = mapped_column(Text)
    state: Mapped[State]
    opened_at_ms: Mapped[Ms]
    decided_at_ms: Mapped[Ms | None]
    refunded: Mapped[Amount] = mapped_column(default=0)
    note: Mapped[str] = mapped_column(Text, default="")


class BanRow(Base):
    """What this marketplace does not serve. `kind`: image, wallet, node."""

    __tablename__ = "bans"

    kind: Mapped[State] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    because: Mapped[str] = mapped_column(Text)
    at_ms: Mapped[Ms]


class AbuseReportRow(Base):
    """What somebody says about a job or a node; for the operator's eyes."""

    __tablename__ = "abuse_reports"
    __table_args__ = (Index("ix_abuse_reports_reporter", "reporter", "state"),)

    report_id: Mapped[Key] = mapped_column(primary_key=True)
    reporter: Mapped[Key]
    subject: Mapped[Key]
    reason: Mapped[str] = mapped_column(Text)
    state: Mapped[State]
    reported_at_ms: Mapped[Ms]
    note: Mapped[str] = mapped_column(Text, default="")
