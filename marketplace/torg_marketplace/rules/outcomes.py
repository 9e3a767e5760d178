"""What follows when a lease ends: the table of `torg_protocol.states.OUTCOMES`, bounded by the job's retries and the client's
will."""

from __future__ import annotations

from dataclasses import dataclass

from torg_protocol.jobspec import Retry
from torg_protocol.states import OUTCOMES, EndReason, Fault, JobState

# A declined grant costs nobody anything, and its job gets no further time in the queue, which bounds them. A completed one counts
# when its verdict rejects it, not twice. A preemption is nobody's failure: how often a job suffers it is bounded by its protection.
_NOT_COUNTED = frozenset({EndReason.DECLINED, EndReason.COMPLETED, EndReason.PREEMPTED, EndReason.MAX_DURATION})


_OWN_FAILURES = frozenset(
    {
        EndReason.FAILED_EXIT,
        EndReason.OOM,
        EndReason.DISK_FULL,
        EndReason.OUTPUT_MISSING,
        EndReason.MAX_DURATION,
        EndReason.BUDGET,
    }
)


@dataclass(frozen=True, slots=True)
class JobHistory:
    """`attempts` and `own_failures` before the lease that ends now."""

    attempts: int
    own_failures: int
    cancel_requested: bool
    was_extended: bool = False  # it may last longer than the lease that ends, and writes checkpoints to go on from


@dataclass(frozen=True, slots=True)
class Ending:
    job: JobState
    counts: bool  # as one of retry.max_attempts
    own_failure: int  # -1: one that was counted was none
    renews_queue_timeout: bool  # when it goes back into the queue
    drops_checkpoint: bool  # all there is; where a lease is judged by itself, only what was stored since it began
    detail: str = ""


def ending(reason: EndReason, retry: Retry, history: JobHistory, policy: str = "none") -> Ending:
    """Where lease and job go. QUEUED becomes CANCELLED when the client asked for it, and FAILED when the attempts are used
    up; a job's own non-zero exit becomes QUEUED while `retry.on_failure` lasts. In a quorum a failure is a vote like a result."""
    if policy == "quorum" and is_own_failure(reason):
        return Ending(
            JobState.VERIFYING, counts=False, own_failure=0, renews_queue_timeout=True, drops_checkpoint=False
        )
    outcome = OUTCOMES[reason]
    counts = reason not in _NOT_COUNTED
    own_failure = reason is EndReason.FAILED_EXIT  # counts one
    job, detail = outcome.job, ""
    if (reason is EndReason.MAX_DURATION and history.was_extended) or (
        own_failure and history.own_failures < retry.on_failure
    ):
        job = JobState.QUEUED
    elif job is JobState.QUEUED and counts and history.attempts + 1 >= retry.max_attempts + history.own_failures:
        job, detail = JobState.FAILED, f"all {retry.max_attempts} attempts are used up"
    if job is JobState.QUEUED and history.cancel_requested:
        job, detail = JobState.CANCELLED, ""
    return Ending(
        job=job,
        counts=counts,
        own_failure=int(own_failure),
        renews_queue_timeout=reason is not EndReason.DECLINED,
        # Work that did not pass, and whatever it was built upon, is not built upon again.
        drops_checkpoint=reason is EndReason.VERIFICATION_REJECTED,
        detail=detail,
    )


def is_judged_by_itself(policy: str) -> bool:
    """Whether a verdict says which of a job's leases did its part: a segment is some lease's own. What a model is worth, all have made together."""
    return policy == "replay"


def is_looked_at_first(policy: str, to: JobState, *, has_checkpoint: bool) -> bool:
    """Whether a lease that has ended before its job did is judged before another node goes on from what it has stored."""
    return is_judged_by_itself(policy) and to is JobState.QUEUED and has_checkpoint


def ending_of_look(ended_for: EndReason, retry: Retry, history: JobHistory, *, failed: bool) -> Ending:
    """Where a job goes when that was done. `history`: with the lease that ended. One that has failed counts as an attempt, once, and what it said
    of the job does not count."""
    counts, lied_about_job = failed and ended_for in _NOT_COUNTED, failed and ended_for is EndReason.FAILED_EXIT
    job, detail = JobState.QUEUED, ""
    if failed and history.attempts + counts >= retry.max_attempts + history.own_failures - lied_about_job:
        job, detail = JobState.FAILED, f"all {retry.max_attempts} attempts are used up"
    elif history.cancel_requested:
        job = JobState.CANCELLED
    return Ending(
        job=job,
        counts=counts,
        own_failure=-1 if lied_about_job else 0,
        renews_queue_timeout=True,
        drops_checkpoint=False,
        detail=detail,
    )


def is_fault_of_node(reason: EndReason) -> bool:
    return OUTCOMES[reason].fault is Fault.NODE


def is_own_failure(reason: EndReason | None) -> bool:
    """That a job ended by itself without a result, which its node alone says: to idle and to say so costs nothing."""
    return reason in _OWN_FAILURES


def is_paid_unseen(policy: str, *, cancel_requested: bool) -> bool:
    """Whether a node's word is enough to be paid, for a job that led to no verdict. Not where the client has asked for work that is verified, and
    did not end it itself: to write anything as a checkpoint, to idle until the job's time is over, to say that it failed, would be the
    cheapest lies of all."""
    return policy == "none" or cancel_requested
