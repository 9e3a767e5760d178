"""What the operator of a marketplace chooses. Values of one process's life; the composition root reads them from settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_SECOND_MS, _MINUTE_MS, _HOUR_MS, _DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000


class MarketPolicy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "torg"
    decimals: int = Field(default=6, ge=0, le=18)  # of the market's token

    # liveness
    heartbeat_ms: int = Field(default=10 * _SECOND_MS, gt=0)
    unknown_after_ms: int = Field(default=30 * _SECOND_MS, gt=0)  # silence after which a node gets no new leases
    lost_after_ms: int = Field(default=5 * _MINUTE_MS, gt=0)  # of the node itself; leases have their own grace
    forget_node_after_ms: int = Field(default=7 * _DAY_MS, gt=0)  # silence after which nobody waits for a node any more

    # leases
    accept_within_ms: int = Field(default=10 * _SECOND_MS, gt=0)
    preparing_limit_ms: int = Field(default=_HOUR_MS, gt=0)
    stop_grace_ms: int = Field(default=30 * _SECOND_MS, gt=0)  # from the polite signal to the kill
    preempt_grace_ms: int = Field(default=2 * _MINUTE_MS, gt=0)  # the same for a spot lease that makes room
    spot_protected_ms: int = Field(default=_MINUTE_MS, ge=0)  # from its start; doubles with each preemption of its job
    stopping_limit_ms: int = Field(default=_HOUR_MS, gt=0)  # a stopped lease must have reported by then
    usage_interval_ms: int = Field(default=10 * _MINUTE_MS, gt=0)
    usage_skew_ms: int = Field(default=2 * _SECOND_MS, ge=0)  # between a node's clock and what the marketplace saw

    # matching
    book_check_ms: int = Field(default=2 * _SECOND_MS, gt=0)  # how old other processes' changes may be in the live book

    # quotes and submissions
    quote_ttl_ms: int = Field(default=_MINUTE_MS, gt=0)
    max_open_jobs_per_account: int = Field(default=1_000, gt=0)

    max_submissions_per_day: int = Field(default=0, ge=0)  # of one account; 0: no limit
    max_spend_per_hour: int = Field(default=0, ge=0)  # base units of the maxima of one account's jobs; 0: no limit
    # Jobs of one account whose work came to no verdict, which nobody was paid for, and whose logs it may have read; 0: no limit.
    max_undecided_per_day: int = Field(default=20, ge=0)
    dispute_window_ms: int = Field(default=14 * _DAY_MS, gt=0)  # after a job is closed

    # verification
    # Nodes are waited for in the first half, which leaves room for the longest replay of our own (`rules/replay.py`).
    verification_window_s: int = Field(default=1_800, gt=0)
    verify_attempts: int = Field(default=5, ge=1)
    verify_retry_ms: int = Field(default=5 * _SECOND_MS, gt=0)
    # Segments that took less are executed again by ourselves: a node would take longer to start.
    replay_here_below_ms: int = Field(default=5 * _SECOND_MS, ge=0)
    planted_permille: int = Field(
        default=100, ge=0, le=1000
    )  # beside each audit by nodes, a segment whose answer we know
    # Nothing is planted among the first segments of a lease: those are executed by ourselves, long ones by nodes of so many owners.
    unplanted_here_below_ms: int = Field(default=5 * _MINUTE_MS, ge=0)
    unplanted_owners: int = Field(default=2, ge=1, le=2)
    verify_claim_ms: int = Field(
        default=5 * _MINUTE_MS, gt=0
    )  # who is at it renews it; a dead one's work is taken over then

    # proofs of hardware
    proof_every_ms: int = Field(default=_HOUR_MS, ge=0)  # mean time between a node's proofs; 0: nobody is asked
    proof_first_within_ms: int = Field(default=_MINUTE_MS, gt=0)  # of its first connection
    proof_ready_within_ms: int = Field(default=_MINUTE_MS, gt=0)  # libraries loaded; also: rows opened
    proof_answer_within_ms: int = Field(default=2 * _MINUTE_MS, gt=0)  # both commitments

    # money
    fee_basis_points: int = Field(default=200, ge=0, le=10_000)
    settlement_max_age_ms: int = Field(default=10 * _MINUTE_MS, gt=0)
    settlement_threshold: int = Field(default=5_000_000, gt=0)  # base units of one vault that are captured at once
    # Of one capture, the fee account included. Eight is what a payee who lands the order itself can fit into a transaction.
    max_payees: int = Field(default=8, ge=2)
    priority_fee_ceiling_lamports: int = Field(
        default=50_000, ge=0
    )  # of one capture, on top of the fees for signatures
    fee_payer_low_lamports: int = Field(default=20_000_000, ge=0)  # below it the operator is warned: captures need fees
    # The program's own least. Whoever earns has so long after a vault began to close: an interval of usage, a verdict, a settlement.
    min_vault_grace_s: int = Field(default=3_600, gt=0)

    # bounds of what is kept of a lease's stream
    live_log_bytes: int = Field(default=4 << 20, gt=0)  # per lease and stream; the whole log is a blob of the report
    progress_rows: int = Field(default=1_000, gt=0)  # per lease; the newest are kept
    progress_bytes: int = Field(default=16 << 10, gt=0)  # of one progress object

    # What is kept how long: docs/reference/what-is-kept.md
    keep_history_ms: int = Field(default=0, ge=0)  # logs, progress and nodes' words, after a job is closed; 0: for good
    keep_deliveries_ms: int = Field(default=30 * _DAY_MS, ge=0)  # of webhooks, delivered or given up; 0: for good
    keep_blobs_ms: int = Field(default=0, ge=0)  # what jobs read and wrote, after they are closed; 0: for good
    keep_unused_ms: int = Field(default=0, ge=0)  # named data and volumes that no job uses; 0: for good
    max_kept_bytes_per_account: int = Field(default=0, ge=0)  # named data and volumes; 0: no limit
    keep_evidence_ms: int = Field(
        default=30 * _DAY_MS, ge=0
    )  # the same, of jobs whose work was looked at, if it is longer
    blob_grace_ms: int = Field(default=86_400_000, gt=0)  # of what nothing refers to, since it was sent or asked about

    # webhooks
    webhook_networks: tuple[str, ...] = ()  # besides the public internet: where webhooks may go, also by plain http
