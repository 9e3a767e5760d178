"""Tables of nodes, jobs and leases. Money has its own (`money_models`).

Only `storage/moves.py` writes a `state` column. What parties signed is stored as it was signed (JSON documents), beside the
columns that queries need.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Amount, Base, DigestText, Json, JsonList, Key, Ms, State
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId
from torg_protocol.states import EndReason, LeaseState, Liveness, NodeState


class NodeRow(Base):
    """A node and its newest offer. `claims` rises with each grant: writing it locks the node's capacity."""

    __tablename__ = "nodes"

    node_id: Mapped[Key] = mapped_column(primary_key=True)
    state: Mapped[State] = mapped_column(default=NodeState.JOINING)
    liveness: Mapped[State] = mapped_column(default=Liveness.ALIVE)
    connected: Mapped[bool] = mapped_column(default=False)
    connected_at_ms: Mapped[Ms] = mapped_column(default=0)  # of the newest hello
    last_seen_ms: Mapped[Ms] = mapped_column(default=0)
    joined_at_ms: Mapped[Ms]
    node_version: Mapped[str] = mapped_column(String(64), default="")
    protocol_version: Mapped[int] = mapped_column(default=1)  # of its newest hello
    offer: Mapped[Json]  # Offer as signed
    offer_signature: Mapped[str] = mapped_column(String(128))
    offer_sequence: Mapped[int]
    claims: Mapped[int] = mapped_column(default=0)
    leases_kept: Mapped[int] = mapped_column(default=0)  # as `rules/reputation.py` counts
    leases_broken: Mapped[int] = mapped_column(default=0)
    clean_leases: Mapped[int] = mapped_column(default=0)  # kept since its last failed audit
    warm: Mapped[JsonList] = mapped_column(default=list)  # images and workspaces that it ran lately, newest first
    gpus_out: Mapped[JsonList] = mapped_column(default=list)  # UUIDs: of these GPUs no new lease gets any
    suspensions: Mapped[JsonList] = mapped_column(default=list)  # Suspension, of each cause that stands
    proof: Mapped[Json] = mapped_column(default=dict)  # `rules/proof.py` ProofRecord
    proof_due_ms: Mapped[Ms] = mapped_column(default=0)  # 0: not scheduled yet

    @property
    def id(self) -> NodeId:
        return NodeId(self.node_id)


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_client_created", "client", "created_at_ms"),
        Index("ix_jobs_state_queued", "state", "queued_at_ms"),
    )

    job_id: Mapped[Key] = mapped_column(primary_key=True)
    client: Mapped[Key]
    vault: Mapped[Key]
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[State]
    spec: Mapped[Json]
    spec_digest: Mapped[DigestText]
    max_amount: Mapped[Amount]  # what is held of the vault until the job is closed
    price_ceiling: Mapped[Amount]  # per GPU-hour: no node above it gets this job
    max_duration_ms: Mapped[Ms | None]  # in all attempts, when it was extended; None: as the spec says
    cap_from_ms: Mapped[Ms]  # when the newest cap was signed: how long it lives is counted from here
    cap: Mapped[Json]  # SignedCap of the submit
    generation: Mapped[int] = mapped_column(default=0)  # fence of the newest lease
    attempts: Mapped[int] = mapped_column(default=0)  # ended leases that count against retry.max_attempts
    preemptions: Mapped[int] = mapped_column(default=0)
    own_failures: Mapped[int] = mapped_column(default=0)  # against retry.on_failure
    checks_job: Mapped[str | None] = mapped_column(
        String(64), index=True
    )  # a replay of this job's segment, which we pay
    excluded_nodes: Mapped[JsonList] = mapped_column(default=list)  # by what happened; the spec may name more
    paused_nodes: Mapped[Json] = mapped_column(default=dict)  # node -> until_ms, times: `rules/declines.py`
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # CheckpointRef to resume from
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    waiting_for: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text, default="")
    cancel_requested_at_ms: Mapped[Ms | None]
    created_at_ms: Mapped[Ms]
    queued_at_ms: Mapped[Ms]
    queue_deadline_ms: Mapped[Ms]
    ended_at_ms: Mapped[Ms | None]
    closed_at_ms: Mapped[Ms | None]  # hold released, all receipts issued
    removed_event_id: Mapped[Ms] = mapped_column(default=0)  # up to this one some of its events are not kept any more,
    removed_until_ms: Mapped[Ms] = mapped_column(default=0)  # the newest of which was of then

    @property
    def id(self) -> JobId:
        return JobId(self.job_id)

    @property
    def account(self) -> AccountId:
        return AccountId(self.client)


class LeaseRow(Base):
    """One try of a job on one node; of an attempt on several nodes at once (`size`), its part on one of them. Times are the marketplace's, except where a name says `claimed`."""

    __tablename__ = "leases"
    __table_args__ = (
        Index("ix_leases_job_attempt_rank", "job_id", "attempt", "rank", unique=True),
        Index("ix_leases_node_state", "node_id", "state"),
        Index("ix_leases_state_verify", "state", "verify_at_ms"),
    )

    lease_id: Mapped[Key] = mapped_column(primary_key=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"))
    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"))
    attempt: Mapped[int]
    rank: Mapped[int] = mapped_column(default=0)  # among the leases of its attempt
    size: Mapped[int] = mapped_column(default=1)  # leases of its attempt
    fence: Mapped[int]
    state: Mapped[State]
    reason: Mapped[str | None] = mapped_column(String(32))
    exit_code: Mapped[int | None]
    detail: Mapped[str] = mapped_column(Text, default="")
    grant: Mapped[Json]  # SignedGrant
    price_per_gpu_hour: Mapped[Amount]
    billable_gpus: Mapped[int]
    max_amount: Mapped[Amount]
    max_duration_ms: Mapped[Ms]
    payout_address: Mapped[Key]
    spot: Mapped[bool] = mapped_column(default=False)
    preempted_for: Mapped[str | None] = mapped_column(String(64))  # the job that it makes room for
    cpu_millis: Mapped[int]  # what it takes of its node while it lives
    memory_bytes: Mapped[Ms]
    disk_bytes: Mapped[Ms]
    acknowledged: Mapped[int] = mapped_column(default=0)  # highest event sequence that was taken
    grace_from_ms: Mapped[Ms]  # silence is counted from here at the earliest

    granted_at_ms: Mapped[Ms]
    started_at_ms: Mapped[Ms | None]
    claimed_started_at_ms: Mapped[Ms | None]  # by the node's clock
    useful_from_ms: Mapped[Ms | None]  # when all leases of its attempt had started: before, nobody is billed
    left_at_ms: Mapped[Ms | None]  # ended, and its attempt goes on without it: of an elastic gang
    exited_at_ms: Mapped[Ms | None]
    reported_at_ms: Mapped[Ms | None]  # the node's last word: reported, released or declined
    stop_reason: Mapped[str | None] = mapped_column(String(32))
    stop_requested_at_ms: Mapped[Ms | None]
    ended_at_ms: Mapped[Ms | None]  # not live any more
    decided_at_ms: Mapped[Ms | None]  # money and receipt are final

    sold_as: Mapped[Json] = mapped_column(default=dict)  # unit -> 10^9 operations/s that were proven of it at the grant

    claimed_ms: Mapped[Ms] = mapped_column(default=0)  # useful time in all, as the node claims it
    claim: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True)
    )  # newest UsageClaimed, not recorded yet
    records: Mapped[int] = mapped_column(default=0)  # usage records so far
    recorded_until_ms: Mapped[Ms | None]  # where the newest one ends, by the node's clock
    billed_ms: Mapped[Ms] = mapped_column(default=0)
    unbilled_ms: Mapped[Ms] = mapped_column(default=0)
    # Of its work, with members that left: [when, milliseconds]. Nobody is billed for it.
    losses: Mapped[JsonList] = mapped_column(default=list)
    amount: Mapped[Amount] = mapped_column(default=0)
    verification_amount: Mapped[Amount] = mapped_column(default=0)  # of the amount, since the lease was decided

    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # newest durable CheckpointRef
    checkpoint_useful_ms: Mapped[Ms] = mapped_column(default=0)  # its useful time, clipped to what we saw
    image_digest: Mapped[str | None] = mapped_column(String(128))
    executor: Mapped[str | None] = mapped_column(String(32))
    isolation: Mapped[str | None] = mapped_column(String(32))
    gpu_uuids: Mapped[JsonList] = mapped_column(default=list)
    use: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # ResourceUse, by the node
    outputs: Mapped[JsonList] = mapped_column(default=list)  # OutputFile
    logs: Mapped[Json] = mapped_column(default=dict)  # stream -> BlobRef of the whole log, when reported
    stdout_bytes: Mapped[Ms] = mapped_column(default=0)  # of the live log: next expected offset
    stderr_bytes: Mapped[Ms] = mapped_column(default=0)
    tasks: Mapped[Json] = mapped_column(default=dict)  # of a job of several: name -> TaskView
    task_log_bytes: Mapped[Json] = mapped_column(
        default=dict
    )  # "task/stream" -> [run, next expected offset, bytes in all]
    progress_rows: Mapped[int] = mapped_column(default=0)
    ports: Mapped[JsonList] = mapped_column(default=list)  # PortState

    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # VerdictSummary
    verify_at_ms: Mapped[Ms | None]
    verify_deadline_ms: Mapped[Ms | None]
    verify_attempts: Mapped[int] = mapped_column(default=0)
    stake: Mapped[Amount] = mapped_column(default=0)  # of its node's collateral, kept aside until it is decided

    @property
    def id(self) -> LeaseId:
        return LeaseId(self.lease_id)

    @property
    def node(self) -> NodeId:
        return NodeId(self.node_id)

    @property
    def ended_for(self) -> EndReason | None:
        return EndReason(self.reason) if self.reason is not None else None

    @property
    def status(self) -> LeaseState:
        return LeaseState(self.state)


class AllocationRow(Base):
    """One unit of a node's capacity in use by a live lease: "gpu:0", "slot:3", "gpu:1/0" (a place on a GPU that leases of one client share). The primary key is the last guard against
    giving one unit to two leases; rows go when the lease ends."""

    __tablename__ = "allocations"

    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"), primary_key=True)
    unit: Mapped[str] = mapped_column(String(16), primary_key=True)
    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"), index=True)


class LeaseEventRow(Base):
    """What a node said about a lease, once per sequence, as it said it. `refusal` holds the problem when it was refused for
    good."""

    __tablename__ = "lease_events"

    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    received_at_ms: Mapped[Ms]
    event: Mapped[Json]
    refusal: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class UsageRow(Base):
    __tablename__ = "usage_records"

    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    signed: Mapped[Json]  # SignedUsage


class ReceiptRow(Base):
    __tablename__ = "receipts"

    lease_id: Mapped[Key] = mapped_column(ForeignKey("leases.lease_id"), primary_key=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), index=True)
    issued_at_ms: Mapped[Ms]
    receipt_digest: Mapped[DigestText]
    signed: Mapped[Json]  # SignedReceipt


class ReferencePriceRow(Base):
    """What a class of GPU was worth in the auction of that minute. Base units per GPU-hour."""

    __tablename__ = "reference_prices"

    gpu_class: Mapped[str] = mapped_column(String(64), primary_key=True)
    at_ms: Mapped[Ms] = mapped_column(primary_key=True, index=True)
    price_per_gpu_hour: Mapped[Amount | None]
    gpus: Mapped[int]  # cleared
    best_bid: Mapped[Amount | None]
    best_ask: Mapped[Amount | None]
    gpus_offered: Mapped[int]
    gpus_wanted: Mapped[int]


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created", "created_at_ms"),)

    account: Mapped[Key] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_digest: Mapped[str] = mapped_column(String(128))
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"))
    created_at_ms: Mapped[Ms]


class ExtensionRow(Base):
    """A job that may last longer, and cost so much more. Kept for a day: what an account may commit within an hour is counted from it."""

    __tablename__ = "extensions"
    __table_args__ = (Index("ix_extensions_account_at", "account", "at_ms"),)

    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), primary_key=True)
    max_duration_ms: Mapped[Ms] = mapped_column(primary_key=True)  # rises with each
    account: Mapped[Key]
    amount: Mapped[Amount]
    at_ms: Mapped[Ms]


class JobEventRow(Base):
    """What a client may follow of a job, in order of `id`. Every state move of the job and its leases is one."""

    __tablename__ = "job_events"
    __table_args__ = (
        Index("ix_job_events_job", "job_id", "id"),
        Index("ix_job_events_lease_kind", "lease_id", "kind", "id"),
        {"sqlite_autoincrement": True},  # an id is never used twice, also after pruning
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"))
    lease_id: Mapped[Key | None]
    at_ms: Mapped[Ms]
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[Json]


class NodeEventRow(Base):
    """State and liveness moves of nodes, for their owners and the operator."""

    __tablename__ = "node_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    node_id: Mapped[Key] = mapped_column(ForeignKey("nodes.node_id"), index=True)
    at_ms: Mapped[Ms]
    data: Mapped[Json]


class BlobUseRow(Base):
    """Which jobs refer to a blob (workspace, checkpoints, outputs, logs): who may read it follows from this."""

    __tablename__ = "blob_uses"

    digest: Mapped[DigestText] = mapped_column(primary_key=True)
    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), primary_key=True)
    client_may_read: Mapped[bool]  # work that is not paid before a verdict stays sealed until then


class BlobUploadRow(Base):
    """Who asked to upload a blob."""

    __tablename__ = "blob_uploads"

    digest: Mapped[DigestText] = mapped_column(primary_key=True)
    account: Mapped[Key] = mapped_column(primary_key=True)
    size_bytes: Mapped[Ms]
    at_ms: Mapped[Ms]


class MarketRow(Base):
    """One row: when this marketplace was last known to be awake. A gap means that it was down, and that silence proves
    nothing."""

    __tablename__ = "market"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    awake_at_ms: Mapped[Ms]
