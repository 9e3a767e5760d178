"""When silence or slowness ends a lease. Times are milliseconds; all of them are the marketplace's."""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.jobspec import SPOT_PATIENCE_MS, JobSpec
from torg_protocol.states import OUTCOMES, EndReason, LeaseState, Liveness


@dataclass(frozen=True, slots=True)
class LeaseClock:
    state: LeaseState
    granted_ms: int
    started_ms: int | None
    stop_requested_ms: int | None
    stop_reason: EndReason | None
    answered: bool  # the node has said anything about it
    grace_from_ms: int  # the grant, or our own newest restart: silence before it proves nothing
    node_seen_ms: int
    lease_grace_ms: int
    max_duration_ms: int


@dataclass(frozen=True, slots=True)
class End:
    reason: EndReason
    detail: str


@dataclass(frozen=True, slots=True)
class StopIt:
    reason: EndReason


def due(lease: LeaseClock, now_ms: int, policy: MarketPolicy) -> End | StopIt | None:
    """What the passing of time means for a live lease; None: nothing yet."""
    unanswered_ms = 0 if lease.answered else now_ms - lease.grace_from_ms
    silent_ms = now_ms - max(lease.node_seen_ms, lease.grace_from_ms)
    if unanswered_ms >= policy.accept_within_ms:
        reason = EndReason.DECLINED if lease.stop_reason is None else lease.stop_reason
        return End(reason, f"no answer within {policy.accept_within_ms} ms")
    if silent_ms >= lease.lease_grace_ms:
        return End(EndReason.NODE_LOST, f"not heard of for {silent_ms} ms")
    prepared_ms = now_ms - lease.grace_from_ms
    if lease.state is LeaseState.PREPARING and prepared_ms >= policy.preparing_limit_ms:
        return End(EndReason.START_FAILED, f"not started within {policy.preparing_limit_ms} ms")
    if lease.state is LeaseState.STOPPING and lease.stop_requested_ms is not None:
        asked_ms = now_ms - max(lease.stop_requested_ms, lease.grace_from_ms)
        if asked_ms >= policy.stopping_limit_ms:
            return End(EndReason.NODE_LOST, f"not stopped within {policy.stopping_limit_ms} ms")
    # The node stops it by itself at max_duration; this is for one that is heard of and does not.
    if lease.state is LeaseState.RUNNING and lease.started_ms is not None and silent_ms < policy.unknown_after_ms:
        over_ms = now_ms - max(lease.started_ms + lease.max_duration_ms, lease.grace_from_ms)
        if over_ms >= policy.stop_grace_ms + policy.unknown_after_ms:
            return StopIt(EndReason.MAX_DURATION)
    return None


def liveness(silent_ms: int, policy: MarketPolicy) -> Liveness:
    """Unknown is not lost: leases stay, only new ones go elsewhere."""
    if silent_ms >= policy.lost_after_ms:
        return Liveness.LOST
    return Liveness.UNKNOWN if silent_ms >= policy.unknown_after_ms else Liveness.ALIVE


def was_down(awake_ms: int, now_ms: int, policy: MarketPolicy) -> bool:
    """Whether the marketplace itself slept (restart, suspended machine) so long that nodes could not be heard."""
    return now_ms - awake_ms >= policy.unknown_after_ms


def went_back_ms(awake_ms: int, now_ms: int, policy: MarketPolicy) -> int:
    """By how much our clock was set back since then, at the least; 0: it was not. Clocks of two machines may differ by less."""
    return awake_ms - now_ms if awake_ms - now_ms >= policy.unknown_after_ms else 0


def latest_lease_end_ms(spec: JobSpec, now_ms: int, max_duration_ms: int | None = None) -> int:
    """The latest moment at which a lease of this job may end: a cap has to outlive it. Clients compute the same. `max_duration_ms`: what
    it was extended to."""
    attempt_ms = (max_duration_ms or spec.limits.max_duration) + spec.lease_grace
    patience_ms = SPOT_PATIENCE_MS if spec.spot else 0
    attempts = spec.retry.max_attempts + spec.replicas - 1
    return now_ms + spec.replicas * spec.limits.queue_timeout + attempts * attempt_ms + patience_ms


@dataclass(frozen=True, slots=True)
class Ran:
    """What is known of a lease when its node says why it ended."""

    started: bool
    ran_ms: int  # the most that it can have run
    max_duration_ms: int
    amount: int  # price of `ran_ms`
    max_amount: int
    asked_to_stop_for: EndReason | None
    cancel_requested: bool
    asked_to_make_room: bool = False  # a client's wish to cancel may have come after it
    gang_ended: bool = False  # another lease of its attempt has ended, and not because it had completed
    others_voted: bool = False  # another replica of its quorum has run, of the same image and inputs


def believed_reason(said: EndReason, ran: Ran) -> EndReason:
    """A node's word for why a lease ended, unless what we know contradicts it: then the fault is the node's.

    A job's own failures (exit code, OOM) cannot be told from lies here: a client who doubts them asks for another attempt, or for a policy that
    verifies, under which they are not paid (`is_paid_unseen`).
    """
    if said is ran.asked_to_stop_for:
        return said
    match said:
        case EndReason.PREEMPTED:
            return said if ran.asked_to_make_room else EndReason.HOST_PROTECTION
        case EndReason.CANCELLED:
            return said if ran.cancel_requested else EndReason.HOST_PROTECTION
        case EndReason.GANG_ENDED:
            return said if ran.gang_ended else EndReason.HOST_PROTECTION
        case EndReason.MAX_DURATION:
            return said if ran.ran_ms >= ran.max_duration_ms else EndReason.HOST_PROTECTION
        case EndReason.BUDGET:
            return said if ran.amount >= ran.max_amount else EndReason.HOST_PROTECTION
        case (
            EndReason.IMAGE_NOT_FOUND | EndReason.INPUT_INVALID
        ):  # what others could run is there; or was: nobody is blamed
            return EndReason.DECLINED if ran.others_voted else said
        case _ if OUTCOMES[said].lease is LeaseState.REPORTED and not ran.started:
            return EndReason.START_FAILED
        case _:
            return said
