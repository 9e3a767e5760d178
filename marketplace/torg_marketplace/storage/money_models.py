"""Tables of money: vaults as the chain shows them, what is committed of them, the ledger, payouts and captures."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Amount, Base, DigestText, JsonList, Key, Ms, State


class VaultRow(Base):
    """A client's vault. `chain_*` are the finalized figures of the newest look at the chain.

    `final_total` + `open_maximum` is what is committed; who admits a job raises it, one writer after the other. `blocked` names the
    difference that stopped payouts and admissions, until a person has cleared it.
    """

    __tablename__ = "vaults"
    __table_args__ = (
        CheckConstraint("open_maximum >= 0", name="open_maximum_not_negative"),
        CheckConstraint("final_total >= 0", name="final_total_not_negative"),
    )

    address: Mapped[Key] = mapped_column(primary_key=True)
    depositor: Mapped[Key]
    signer: Mapped[Key]
    next_signer: Mapped[Key]
    next_signer_at_s: Mapped[Ms] = mapped_column(default=0)
    token_account: Mapped[Key]
    grace_s: Mapped[Ms]
    chain_balance: Mapped[Amount]
    chain_settled: Mapped[Amount]
    chain_slot: Mapped[Ms] = mapped_column(default=0)  # all that is known here of the chain had happened by then
    close_at_s: Mapped[Ms] = mapped_column(default=0)
    closed: Mapped[bool] = mapped_column(default=False)  # no longer on chain
    seen_at_ms: Mapped[Ms]
    deposits: Mapped[Amount] = mapped_column(default=0)  # settled + balance that the ledger has posted
    final_total: Mapped[Amount] = mapped_column(default=0)
    open_maximum: Mapped[Amount] = mapped_column(default=0)
    commitments: Mapped[int] = mapped_column(default=0)  # sequence of the newest commitment
    active_settlement: Mapped[Key | None]  # at most one capture in flight
    credit: Mapped[Amount] = mapped_column(default=0)  # refunds that nothing of later captures has covered yet
    blocked: Mapped[str | None] = mapped_column(Text)


class CapRow(Base):
    """A cap that the vault's signer signed. Any valid one that is high enough may carry a capture."""

    __tablename__ = "caps"

    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"), primary_key=True)
    cap: Mapped[Amount] = mapped_column(primary_key=True)
    valid_until_s: Mapped[Ms] = mapped_column(primary_key=True)
    signer: Mapped[Key]
    signature: Mapped[str] = mapped_column(String(128))


class CommitmentRow(Base):
    """A lease's range of its vault. `upper` falls to what was earned when the lease is decided; `released` once that is
    settled: until then no other lease gets any of it."""

    __tablename__ = "commitments"
    __table_args__ = (Index("ix_commitments_vault_released", "vault", "released"),)

    lease_id: Mapped[Key] = mapped_column(primary_key=True)
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"))
    sequence: Mapped[int]
    lower: Mapped[Amount]
    upper: Mapped[Amount]
    decided: Mapped[bool] = mapped_column(default=False)
    released: Mapped[bool] = mapped_column(default=False)


class HoldRow(Base):
    """The most that a job may cost, kept aside from its submission to its end."""

    __tablename__ = "holds"

    job_id: Mapped[Key] = mapped_column(primary_key=True)
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"), index=True)
    max_amount: Mapped[Amount]
    billed: Mapped[Amount] = mapped_column(default=0)
    refunded: Mapped[Amount] = mapped_column(default=0)  # of what was billed, not captured after all
    open: Mapped[bool] = mapped_column(default=True)


class PostingRow(Base):
    """One movement of money. The key makes it happen once; the cause says why."""

    __tablename__ = "postings"

    key: Mapped[str] = mapped_column(String(160), primary_key=True)
    cause: Mapped[str] = mapped_column(String(160))
    at_ms: Mapped[Ms]


class EntryRow(Base):
    """One side of a posting. All entries of a posting add up to zero."""

    __tablename__ = "ledger_entries"
    __table_args__ = (Index("ix_ledger_entries_account", "account"),)

    posting: Mapped[str] = mapped_column(ForeignKey("postings.key"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(String(160))
    amount: Mapped[Amount]


class EarningRow(Base):
    """What one usage record earned: PENDING until its lease is decided, then PAYABLE or REFUNDED."""

    __tablename__ = "earnings"

    lease_id: Mapped[Key] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("holds.job_id"), index=True)
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"))
    payout_address: Mapped[Key]
    node_amount: Mapped[Amount]
    fee_amount: Mapped[Amount]
    record_digest: Mapped[DigestText]
    state: Mapped[State]


class PayoutRow(Base):
    """One payment to one address for one usage record."""

    __tablename__ = "payouts"
    __table_args__ = (
        Index("ix_payouts_vault_state", "vault", "state"),
        Index("ix_payouts_settlement", "settlement_id"),
    )

    payout_id: Mapped[Key] = mapped_column(primary_key=True)
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"))
    lease_id: Mapped[Key]
    payout_address: Mapped[Key]
    amount: Mapped[Amount]
    refunded: Mapped[Amount] = mapped_column(default=0)  # taken off `amount` before it was captured
    record_digest: Mapped[DigestText]
    state: Mapped[State]
    settlement_id: Mapped[Key | None]
    created_at_ms: Mapped[Ms]
    note: Mapped[str] = mapped_column(Text, default="")


class RefundRow(Base):
    """Part of what a lease cost, given back. `from_node` and `from_fees` were taken off payouts that waited; `outstanding` is credit
    that later fees out of the vault work off. The id names its cause and what it is about, so it happens once."""

    __tablename__ = "refunds"
    __table_args__ = (
        Index("ix_refunds_lease", "lease_id"),
        Index("ix_refunds_client", "client", "at_ms"),
        Index("ix_refunds_node", "node_id", "at_ms"),
        Index("ix_refunds_vault", "vault"),
    )

    refund_id: Mapped[str] = mapped_column(String(96), primary_key=True)
    cause: Mapped[str] = mapped_column(String(32))
    lease_id: Mapped[Key]
    job_id: Mapped[Key]
    client: Mapped[Key]
    node_id: Mapped[Key]
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"))
    amount: Mapped[Amount]
    from_node: Mapped[Amount]
    from_fees: Mapped[Amount]
    outstanding: Mapped[Amount]
    postings: Mapped[int]
    at_ms: Mapped[Ms]
    signed: Mapped[dict[str, Any]] = mapped_column(JSON)  # SignedRefund


class SettlementRow(Base):
    """One order and the transaction that carries it, stored before it is sent. The partial index is the last guard: one in flight per vault."""

    __tablename__ = "settlements"
    __table_args__ = (
        Index(
            "uq_settlements_in_flight",
            "vault",
            unique=True,
            sqlite_where=text("state IN ('built', 'unknown', 'confirmed')"),
            postgresql_where=text("state IN ('built', 'unknown', 'confirmed')"),
        ),
    )

    settlement_id: Mapped[Key] = mapped_column(primary_key=True)
    vault: Mapped[Key] = mapped_column(ForeignKey("vaults.address"), index=True)
    state: Mapped[State]
    expected_settled: Mapped[Amount]
    amount: Mapped[Amount]
    payees: Mapped[JsonList]  # [payout address, amount], in the transaction's order
    token_accounts: Mapped[JsonList]  # of the payees, in the same order: what the order on chain says
    payout_ids: Mapped[JsonList]  # kept when the capture dies: its order may be landed by a payee all the same
    root: Mapped[DigestText]
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[str] = mapped_column(String(128))
    last_valid_block_height: Mapped[Ms]
    created_at_ms: Mapped[Ms]
    sent_at_ms: Mapped[Ms | None]
    detail: Mapped[str] = mapped_column(Text, default="")
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
