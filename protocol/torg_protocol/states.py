"""States and legal moves, as data. These tables are the truth; docs/reference/states.md is generated from them.

A *job* is what the client wants, an *attempt* (a lease) one try on one node, a *payout* one payment. A failed try is never
rewritten: it ends, and a new lease row begins. Why a lease ends decides everything that follows: see `OUTCOMES`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torg_protocol.errors import Conflict

S = TypeVar("S", bound=enum.StrEnum)


class JobState(enum.StrEnum):
    QUEUED = "queued"
    LEASED = "leased"
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    STOPPED = "stopped"  # kind=service only


class LeaseState(enum.StrEnum):
    GRANTED = "granted"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    REPORTED = "reported"
    VERIFIED = "verified"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    RELEASED = "released"
    LOST = "lost"
    REVOKED = "revoked"


class PayoutState(enum.StrEnum):
    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"
    LOST = "lost"  # the vault was closed before it was captured: nothing can pay it any more
    REFUNDED = "refunded"  # given back to the client before it was captured, all of it


class SettlementState(enum.StrEnum):
    """One capture transaction. UNKNOWN: sent, and we cannot tell yet; the same bytes are resent until we can."""

    BUILT = "built"
    UNKNOWN = "unknown"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"
    DEAD = "dead"  # its blockhash expired and it provably never landed; its order still may, by somebody else's hand


class SlashState(enum.StrEnum):
    """What is taken of a node's collateral after a failed audit; each move but the first follows what the chain shows, finalized."""

    WANTED = "wanted"
    PROPOSED = "proposed"  # on chain; the node has a day to object, and the operator to cancel
    EXECUTED = "executed"  # the client has it
    CANCELLED = "cancelled"  # by the operator
    FAILED = "failed"  # nothing is left to take, or it closes too soon


class NodeState(enum.StrEnum):
    JOINING = "joining"
    ACTIVE = "active"
    DRAINING = "draining"
    SUSPENDED = "suspended"


class Liveness(enum.StrEnum):
    ALIVE = "alive"
    UNKNOWN = "unknown"  # no heartbeat for a while: no new leases, old ones stay
    LOST = "lost"


JOB_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.LEASED, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED}),
    JobState.LEASED: frozenset(
        {JobState.QUEUED, JobState.VERIFYING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.STOPPED}
    ),
    # CANCELLED: its client had asked for it before the result came, which was then rejected.
    JobState.VERIFYING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
    JobState.STOPPED: frozenset(),
}

_ENDS_EARLY = {LeaseState.RELEASED, LeaseState.LOST, LeaseState.REVOKED}
LEASE_MOVES: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.GRANTED: frozenset({LeaseState.PREPARING, LeaseState.STOPPING, *_ENDS_EARLY}),
    LeaseState.PREPARING: frozenset({LeaseState.RUNNING, LeaseState.STOPPING, LeaseState.REPORTED, *_ENDS_EARLY}),
    LeaseState.RUNNING: frozenset({LeaseState.STOPPING, LeaseState.REPORTED, *_ENDS_EARLY}),
    LeaseState.STOPPING: frozenset({LeaseState.REPORTED, *_ENDS_EARLY}),
    LeaseState.REPORTED: frozenset({LeaseState.VERIFIED, LeaseState.REJECTED, LeaseState.INCONCLUSIVE}),
    LeaseState.INCONCLUSIVE: frozenset({LeaseState.VERIFIED, LeaseState.REJECTED}),
    LeaseState.VERIFIED: frozenset(),
    LeaseState.REJECTED: frozenset(),
    # REJECTED: over before its job was, and what it had handed over for others to go on from was not the job's work.
    LeaseState.RELEASED: frozenset({LeaseState.REJECTED}),
    LeaseState.LOST: frozenset({LeaseState.REJECTED}),
    LeaseState.REVOKED: frozenset({LeaseState.REJECTED}),
}

PAYOUT_MOVES: Mapping[PayoutState, frozenset[PayoutState]] = {
    PayoutState.PENDING: frozenset({PayoutState.IN_FLIGHT, PayoutState.LOST, PayoutState.REFUNDED}),
    PayoutState.IN_FLIGHT: frozenset({PayoutState.PENDING, PayoutState.CONFIRMED}),
    PayoutState.CONFIRMED: frozenset(
        {PayoutState.PENDING, PayoutState.FINALIZED}
    ),  # back to PENDING: rolled back by a fork
    PayoutState.FINALIZED: frozenset(),
    PayoutState.LOST: frozenset(),
    PayoutState.REFUNDED: frozenset(),
}
OVER_PAYOUT_STATES = frozenset({PayoutState.FINALIZED, PayoutState.LOST, PayoutState.REFUNDED})

SETTLEMENT_MOVES: Mapping[SettlementState, frozenset[SettlementState]] = {
    SettlementState.BUILT: frozenset({SettlementState.UNKNOWN, SettlementState.DEAD}),
    SettlementState.UNKNOWN: frozenset({SettlementState.CONFIRMED, SettlementState.FINALIZED, SettlementState.DEAD}),
    SettlementState.CONFIRMED: frozenset({SettlementState.FINALIZED, SettlementState.UNKNOWN}),
    SettlementState.FINALIZED: frozenset(),
    SettlementState.DEAD: frozenset({SettlementState.CONFIRMED}),  # a payee landed the order itself
}

SLASH_MOVES: Mapping[SlashState, frozenset[SlashState]] = {
    SlashState.WANTED: frozenset({SlashState.PROPOSED, SlashState.CANCELLED, SlashState.FAILED}),
    # Back: nobody executed it in time, and it left the chain.
    SlashState.PROPOSED: frozenset({SlashState.WANTED, SlashState.EXECUTED, SlashState.CANCELLED, SlashState.FAILED}),
    SlashState.EXECUTED: frozenset(),
    SlashState.CANCELLED: frozenset(),
    SlashState.FAILED: frozenset(),
}
OPEN_SLASH_STATES = frozenset({SlashState.WANTED, SlashState.PROPOSED})

NODE_MOVES: Mapping[NodeState, frozenset[NodeState]] = {
    NodeState.JOINING: frozenset({NodeState.ACTIVE, NodeState.SUSPENDED}),
    NodeState.ACTIVE: frozenset({NodeState.DRAINING, NodeState.SUSPENDED}),
    NodeState.DRAINING: frozenset({NodeState.ACTIVE, NodeState.SUSPENDED}),
    NodeState.SUSPENDED: frozenset({NodeState.ACTIVE}),
}

OPEN_JOB_STATES = frozenset({JobState.QUEUED, JobState.LEASED, JobState.VERIFYING})
LIVE_LEASE_STATES = frozenset({LeaseState.GRANTED, LeaseState.PREPARING, LeaseState.RUNNING, LeaseState.STOPPING})


class IllegalMove(Conflict):
    default_code = "illegal_move"


def check_move(moves: Mapping[S, frozenset[S]], current: S, to: S) -> None:
    """Raises IllegalMove unless `moves` allows it. Staying where one is, is not a move."""
    if to not in moves[current]:
        raise IllegalMove(
            f"{type(current).__name__} cannot go from {current} to {to}", current=str(current), to=str(to)
        )


class EndReason(enum.StrEnum):
    """Why a lease ended (or, for QUEUE_DEADLINE, why a job never got one)."""

    COMPLETED = "completed"  # exit code 0
    FAILED_EXIT = "failed_exit"  # any other exit code
    OOM = "oom"  # over the memory the job asked for
    DISK_FULL = "disk_full"  # over the disk the job asked for
    OUTPUT_MISSING = "output_missing"  # exit code 0, but a declared output is not there
    MAX_DURATION = "max_duration"
    BUDGET = "budget"  # the hold is used up
    CANCELLED = "cancelled"
    QUEUE_DEADLINE = "queue_deadline"
    IMAGE_NOT_FOUND = "image_not_found"
    INPUT_INVALID = "input_invalid"  # digest mismatch, unsafe archive, command that cannot be started
    DECLINED = "declined"  # the node would not take the grant: no penalty
    START_FAILED = "start_failed"  # the node could not start what another node can
    DRAINED = "drained"
    PREEMPTED = "preempted"
    HOST_PROTECTION = "host_protection"
    EXPOSURE_LIMIT = "exposure_limit"  # the node has enough unpaid work
    NODE_LOST = "node_lost"
    STALE = "stale"  # came back after its lease was given to another
    GANG_ENDED = "gang_ended"  # another member of its gang ended the attempt
    VERIFICATION_REJECTED = "verification_rejected"


class Billing(enum.StrEnum):
    FULL = "full"  # every useful second
    CHECKPOINT = "checkpoint"  # useful seconds up to the newest durable checkpoint that a later attempt resumes from
    NONE = "none"


class Fault(enum.StrEnum):
    JOB = "job"
    NODE = "node"
    NOBODY = "nobody"


class Exclusion(enum.StrEnum):
    """Whether the job may come to the same node again."""

    NO = "no"
    PASSING = "passing"  # not for a while, which grows when it happens again
    LASTING = "lasting"  # never


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from an end reason. `job` is the job's next state; QUEUED means another attempt (bounded by the spec's
    `retry.max_attempts`, then FAILED)."""

    lease: LeaseState
    job: JobState
    billing: Billing
    fault: Fault
    excludes: Exclusion = Exclusion.NO


def _own(job: JobState = JobState.FAILED, billing: Billing = Billing.FULL) -> Outcome:
    return Outcome(LeaseState.REPORTED, job, billing, Fault.JOB)


OUTCOMES: Mapping[EndReason, Outcome] = {
    EndReason.COMPLETED: Outcome(LeaseState.REPORTED, JobState.VERIFYING, Billing.FULL, Fault.NOBODY),
    EndReason.FAILED_EXIT: _own(),
    EndReason.OOM: _own(),
    EndReason.DISK_FULL: _own(),
    EndReason.OUTPUT_MISSING: _own(),
    EndReason.MAX_DURATION: _own(),
    EndReason.BUDGET: _own(),
    EndReason.CANCELLED: _own(JobState.CANCELLED),
    EndReason.QUEUE_DEADLINE: Outcome(LeaseState.RELEASED, JobState.EXPIRED, Billing.NONE, Fault.NOBODY),
    EndReason.IMAGE_NOT_FOUND: Outcome(LeaseState.RELEASED, JobState.FAILED, Billing.NONE, Fault.JOB),
    EndReason.INPUT_INVALID: Outcome(LeaseState.RELEASED, JobState.FAILED, Billing.NONE, Fault.JOB),
    # For good where the node says a reason that does not pass.
    EndReason.DECLINED: Outcome(LeaseState.RELEASED, JobState.QUEUED, Billing.NONE, Fault.NOBODY, Exclusion.PASSING),
    EndReason.START_FAILED: Outcome(LeaseState.RELEASED, JobState.QUEUED, Billing.NONE, Fault.NODE, Exclusion.LASTING),
    EndReason.DRAINED: Outcome(
        LeaseState.RELEASED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NOBODY, Exclusion.PASSING
    ),
    EndReason.PREEMPTED: Outcome(LeaseState.RELEASED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NOBODY),
    EndReason.HOST_PROTECTION: Outcome(
        LeaseState.RELEASED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NODE, Exclusion.LASTING
    ),
    EndReason.EXPOSURE_LIMIT: Outcome(
        LeaseState.RELEASED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NOBODY, Exclusion.PASSING
    ),
    EndReason.NODE_LOST: Outcome(LeaseState.LOST, JobState.QUEUED, Billing.CHECKPOINT, Fault.NODE, Exclusion.LASTING),
    EndReason.STALE: Outcome(LeaseState.REVOKED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NODE),
    EndReason.GANG_ENDED: Outcome(LeaseState.RELEASED, JobState.QUEUED, Billing.CHECKPOINT, Fault.NOBODY),
    EndReason.VERIFICATION_REJECTED: Outcome(
        LeaseState.REJECTED, JobState.QUEUED, Billing.NONE, Fault.NODE, Exclusion.LASTING
    ),
}
