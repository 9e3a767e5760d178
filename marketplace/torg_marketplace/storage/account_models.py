"""Tables of API keys and of the credit that pays for what they do. Custodial: this money is the operator's vault."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Amount, Base, JsonList, Key, Ms


class ApiKeyRow(Base):
    """A key is never deleted: what it spent stays accountable. `secret_sha256` of 256 random bits needs no slow hash."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ix_api_keys_account", "account", "key_id"),
        CheckConstraint("held >= 0", name="held_not_negative"),
    )

    key_id: Mapped[Key] = mapped_column(primary_key=True)
    account: Mapped[Key]
    name: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[JsonList]
    spend_cap: Mapped[Amount]
    spent: Mapped[Amount] = mapped_column(default=0)
    held: Mapped[Amount] = mapped_column(default=0)
    created_at_ms: Mapped[Ms]
    expires_at_ms: Mapped[Ms]
    revoked_at_ms: Mapped[Ms | None]
    last_used_at_ms: Mapped[Ms | None]


class CreditRow(Base):
    """What the operator lets an account spend of the credit vault."""

    __tablename__ = "credits"
    __table_args__ = (CheckConstraint("held >= 0", name="held_not_negative"),)

    account: Mapped[Key] = mapped_column(primary_key=True)
    granted: Mapped[Amount] = mapped_column(default=0)
    spent: Mapped[Amount] = mapped_column(default=0)
    held: Mapped[Amount] = mapped_column(default=0)


class CreditHoldRow(Base):
    """A job that credit pays: its maximum counts against key and account until it is closed."""

    __tablename__ = "credit_holds"

    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), primary_key=True)
    account: Mapped[Key] = mapped_column(ForeignKey("credits.account"))
    key_id: Mapped[Key] = mapped_column(ForeignKey("api_keys.key_id"))
    max_amount: Mapped[Amount]
    open: Mapped[bool] = mapped_column(default=True)


class CreditVaultRow(Base):
    """Vaults whose depositor is the operator itself. The newest one pays for new jobs."""

    __tablename__ = "credit_vaults"

    address: Mapped[Key] = mapped_column(primary_key=True)
    opened_at_ms: Mapped[Ms]
