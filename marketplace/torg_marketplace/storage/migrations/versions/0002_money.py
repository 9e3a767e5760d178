"""Vaults, ledger, payouts and captures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _postings()
    _vaults()
    _caps()
    _commitments()
    _holds()
    _ledger_entries()
    _payouts()
    _settlements()
    _earnings()


def downgrade() -> None:
    for table in (
        "earnings",
        "settlements",
        "payouts",
        "ledger_entries",
        "holds",
        "commitments",
        "caps",
        "vaults",
        "postings",
    ):
        op.drop_table(table)


def _postings() -> None:
    op.create_table(
        "postings",
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.Column("cause", sa.String(length=160), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_postings")),
    )


def _vaults() -> None:
    op.create_table(
        "vaults",
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("depositor", sa.String(length=64), nullable=False),
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("next_signer", sa.String(length=64), nullable=False),
        sa.Column("next_signer_at_s", sa.BigInteger(), nullable=False),
        sa.Column("token_account", sa.String(length=64), nullable=False),
        sa.Column("grace_s", sa.BigInteger(), nullable=False),
        sa.Column("chain_balance", sa.BigInteger(), nullable=False),
        sa.Column("chain_settled", sa.BigInteger(), nullable=False),
        sa.Column("close_at_s", sa.BigInteger(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("deposits", sa.BigInteger(), nullable=False),
        sa.Column("final_total", sa.BigInteger(), nullable=False),
        sa.Column("open_maximum", sa.BigInteger(), nullable=False),
        sa.Column("commitments", sa.Integer(), nullable=False),
        sa.Column("active_settlement", sa.String(length=64), nullable=True),
        sa.Column("blocked", sa.Text(), nullable=True),
        sa.CheckConstraint("final_total >= 0", name=op.f("ck_vaults_final_total_not_negative")),
        sa.CheckConstraint("open_maximum >= 0", name=op.f("ck_vaults_open_maximum_not_negative")),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_vaults")),
    )


def _caps() -> None:
    op.create_table(
        "caps",
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("cap", sa.BigInteger(), nullable=False),
        sa.Column("valid_until_s", sa.BigInteger(), nullable=False),
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_caps_vault_vaults")),
        sa.PrimaryKeyConstraint("vault", "cap", "valid_until_s", name=op.f("pk_caps")),
    )


def _commitments() -> None:
    op.create_table(
        "commitments",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("lower", sa.BigInteger(), nullable=False),
        sa.Column("upper", sa.BigInteger(), nullable=False),
        sa.Column("decided", sa.Boolean(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_commitments_vault_vaults")),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_commitments")),
    )
    op.create_index("ix_commitments_vault_released", "commitments", ["vault", "released"], unique=False)


def _holds() -> None:
    op.create_table(
        "holds",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), nullable=False),
        sa.Column("billed", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_holds_vault_vaults")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_holds")),
    )
    op.create_index(op.f("ix_holds_vault"), "holds", ["vault"], unique=False)


def _ledger_entries() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("posting", sa.String(length=160), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(length=160), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["posting"], ["postings.key"], name=op.f("fk_ledger_entries_posting_postings")),
        sa.PrimaryKeyConstraint("posting", "number", name=op.f("pk_ledger_entries")),
    )
    op.create_index("ix_ledger_entries_account", "ledger_entries", ["account"], unique=False)


def _payouts() -> None:
    op.create_table(
        "payouts",
        sa.Column("payout_id", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("payout_address", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("record_digest", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("settlement_id", sa.String(length=64), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_payouts_vault_vaults")),
        sa.PrimaryKeyConstraint("payout_id", name=op.f("pk_payouts")),
    )
    op.create_index("ix_payouts_settlement", "payouts", ["settlement_id"], unique=False)
    op.create_index("ix_payouts_vault_state", "payouts", ["vault", "state"], unique=False)


def _settlements() -> None:
    op.create_table(
        "settlements",
        sa.Column("settlement_id", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("expected_settled", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("payees", sa.JSON(), nullable=False),
        sa.Column("root", sa.String(length=71), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.Column("last_valid_block_height", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_settlements_vault_vaults")),
        sa.PrimaryKeyConstraint("settlement_id", name=op.f("pk_settlements")),
    )
    op.create_index(op.f("ix_settlements_vault"), "settlements", ["vault"], unique=False)
    op.create_index(
        "uq_settlements_in_flight",
        "settlements",
        ["vault"],
        unique=True,
        sqlite_where=sa.text("state IN ('built', 'unknown', 'confirmed')"),
        postgresql_where=sa.text("state IN ('built', 'unknown', 'confirmed')"),
    )


def _earnings() -> None:
    op.create_table(
        "earnings",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("payout_address", sa.String(length=64), nullable=False),
        sa.Column("node_amount", sa.BigInteger(), nullable=False),
        sa.Column("fee_amount", sa.BigInteger(), nullable=False),
        sa.Column("record_digest", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["holds.job_id"], name=op.f("fk_earnings_job_id_holds")),
        sa.ForeignKeyConstraint(["vault"], ["vaults.address"], name=op.f("fk_earnings_vault_vaults")),
        sa.PrimaryKeyConstraint("lease_id", "sequence", name=op.f("pk_earnings")),
    )
    op.create_index(op.f("ix_earnings_job_id"), "earnings", ["job_id"], unique=False)
