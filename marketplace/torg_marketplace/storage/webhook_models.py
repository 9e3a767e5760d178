"""Tables of webhooks: who wants to be told of what, and the outbox of what is to be told."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Base, JsonList, Key, Ms, State


class WebhookRow(Base):
    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_account", "account", "webhook_id"),)

    webhook_id: Mapped[Key] = mapped_column(primary_key=True)
    account: Mapped[Key]
    url: Mapped[str] = mapped_column(Text)
    kinds: Mapped[JsonList]
    created_at_ms: Mapped[Ms]
    deleted_at_ms: Mapped[Ms | None]


class DeliveryRow(Base):
    """One event for one webhook: sent until it is answered 2xx or given up. Its id is the message's, in every try."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "next_try_at_ms"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "delivery_id"),
    )

    delivery_id: Mapped[Key] = mapped_column(primary_key=True)
    webhook_id: Mapped[Key] = mapped_column(ForeignKey("webhooks.webhook_id"))
    job_id: Mapped[Key]
    event_id: Mapped[Ms]
    payload: Mapped[str] = mapped_column(Text)
    state: Mapped[State] = mapped_column(default="pending")
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at_ms: Mapped[Ms]
    answer: Mapped[str] = mapped_column(String(200), default="")


class WebhookCursorRow(Base):
    """One row: the newest job event that has been turned into deliveries."""

    __tablename__ = "webhook_cursor"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event_id: Mapped[Ms]
