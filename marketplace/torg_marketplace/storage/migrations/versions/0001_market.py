"""Nodes, jobs, leases, and what was said about them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _blob_uploads()
    _jobs()
    _market()
    _nodes()
    _quotes()
    _blob_uses()
    _idempotency_keys()
    _job_events()
    _leases()
    _leases_indexes()
    _node_events()
    _allocations()
    _lease_events()
    _receipts()
    _usage_records()


def downgrade() -> None:
    for table in (
        "usage_records",
        "receipts",
        "lease_events",
        "allocations",
        "node_events",
        "leases",
        "job_events",
        "idempotency_keys",
        "blob_uses",
        "quotes",
        "nodes",
        "market",
        "jobs",
        "blob_uploads",
    ):
        op.drop_table(table)


def _blob_uploads() -> None:
    op.create_table(
        "blob_uploads",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "account", name=op.f("pk_blob_uploads")),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("client", sa.String(length=64), nullable=False),
        sa.Column("vault", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_digest", sa.String(length=71), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), nullable=False),
        sa.Column("price_ceiling", sa.BigInteger(), nullable=False),
        sa.Column("cap", sa.JSON(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("own_failures", sa.Integer(), nullable=False),
        sa.Column("excluded_nodes", sa.JSON(), nullable=False),
        sa.Column("checkpoint", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("waiting_for", sa.Text(), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("cancel_requested_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("queue_deadline_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("closed_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_client_created", "jobs", ["client", "created_at_ms"], unique=False)
    op.create_index("ix_jobs_state_queued", "jobs", ["state", "queued_at_ms"], unique=False)


def _market() -> None:
    op.create_table(
        "market",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("awake_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_market")),
    )


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("liveness", sa.String(length=16), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("connected_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("joined_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("node_version", sa.String(length=64), nullable=False),
        sa.Column("offer", sa.JSON(), nullable=False),
        sa.Column("offer_signature", sa.String(length=128), nullable=False),
        sa.Column("offer_sequence", sa.Integer(), nullable=False),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
    )


def _quotes() -> None:
    op.create_table(
        "quotes",
        sa.Column("quote_id", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("spec_digest", sa.String(length=71), nullable=False),
        sa.Column("price_ceiling", sa.BigInteger(), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("quote_id", name=op.f("pk_quotes")),
    )
    op.create_index(op.f("ix_quotes_expires_at_ms"), "quotes", ["expires_at_ms"], unique=False)


def _blob_uses() -> None:
    op.create_table(
        "blob_uses",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("client_may_read", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_blob_uses_job_id_jobs")),
        sa.PrimaryKeyConstraint("digest", "job_id", name=op.f("pk_blob_uses")),
    )


def _idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_digest", sa.String(length=128), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_idempotency_keys_job_id_jobs")),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("pk_idempotency_keys")),
    )


def _job_events() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_job_events_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job", "job_events", ["job_id", "id"], unique=False)
    op.create_index("ix_job_events_lease_kind", "job_events", ["lease_id", "kind", "id"], unique=False)


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("grant", sa.JSON(), nullable=False),
        sa.Column("price_per_gpu_hour", sa.BigInteger(), nullable=False),
        sa.Column("billable_gpus", sa.Integer(), nullable=False),
        sa.Column("max_amount", sa.BigInteger(), nullable=False),
        sa.Column("max_duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("payout_address", sa.String(length=64), nullable=False),
        sa.Column("cpu_millis", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=False),
        sa.Column("acknowledged", sa.Integer(), nullable=False),
        sa.Column("grace_from_ms", sa.BigInteger(), nullable=False),
        sa.Column("granted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("claimed_started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("exited_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("reported_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("stop_reason", sa.String(length=32), nullable=True),
        sa.Column("stop_requested_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("claimed_ms", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("recorded_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("billed_ms", sa.BigInteger(), nullable=False),
        sa.Column("unbilled_ms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("checkpoint_useful_ms", sa.BigInteger(), nullable=False),
        sa.Column("image_digest", sa.String(length=128), nullable=True),
        sa.Column("executor", sa.String(length=32), nullable=True),
        sa.Column("isolation", sa.String(length=32), nullable=True),
        sa.Column("gpu_uuids", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("logs", sa.JSON(), nullable=False),
        sa.Column("stdout_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stderr_bytes", sa.BigInteger(), nullable=False),
        sa.Column("progress_rows", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("verify_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("verify_deadline_ms", sa.BigInteger(), nullable=True),
        sa.Column("verify_attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_leases_job_id_jobs")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_leases_node_id_nodes")),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_leases")),
    )


def _leases_indexes() -> None:
    op.create_index("ix_leases_job_attempt", "leases", ["job_id", "attempt"], unique=True)
    op.create_index("ix_leases_node_state", "leases", ["node_id", "state"], unique=False)
    op.create_index("ix_leases_state_verify", "leases", ["state", "verify_at_ms"], unique=False)


def _node_events() -> None:
    op.create_table(
        "node_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_node_events_node_id_nodes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_events")),
    )
    op.create_index(op.f("ix_node_events_node_id"), "node_events", ["node_id"], unique=False)


def _allocations() -> None:
    op.create_table(
        "allocations",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_allocations_lease_id_leases")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_allocations_node_id_nodes")),
        sa.PrimaryKeyConstraint("node_id", "unit", name=op.f("pk_allocations")),
    )
    op.create_index(op.f("ix_allocations_lease_id"), "allocations", ["lease_id"], unique=False)


def _lease_events() -> None:
    op.create_table(
        "lease_events",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("refusal", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_lease_events_lease_id_leases")),
        sa.PrimaryKeyConstraint("lease_id", "sequence", name=op.f("pk_lease_events")),
    )


def _receipts() -> None:
    op.create_table(
        "receipts",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("receipt_digest", sa.String(length=71), nullable=False),
        sa.Column("signed", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_receipts_job_id_jobs")),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_receipts_lease_id_leases")),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_receipts")),
    )
    op.create_index(op.f("ix_receipts_job_id"), "receipts", ["job_id"], unique=False)


def _usage_records() -> None:
    op.create_table(
        "usage_records",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("signed", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_usage_records_lease_id_leases")),
        sa.PrimaryKeyConstraint("lease_id", "sequence", name=op.f("pk_usage_records")),
    )
