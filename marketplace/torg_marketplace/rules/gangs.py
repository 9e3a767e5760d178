"""What becomes of an attempt that runs on several nodes at once, from how each of its leases ended. Of one lease alone it is its own end.

An attempt ends as a whole. When one member ends otherwise than completed, the others are stopped (GANG_ENDED), and the reason of the
attempt is decided when all of them have ended: survivors often exit with an error because their peer was lost, long before anybody knows
of it, and that must not count as the job's own failure.

An elastic gang (`min_size`) that has started goes on without a member, as long as rank 0 and enough others are there. Who has left so is
no part of the attempt's end any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torg_protocol.states import OUTCOMES, Billing, EndReason, Fault, JobState

# By itself none of these says why: what they followed from does.
_FOLLOWS = frozenset({EndReason.GANG_ENDED, EndReason.COMPLETED})
# What a program does when it alone has lost touch with the others; when the program is to blame, all of them do.
_OWN_FAILURES = frozenset({EndReason.FAILED_EXIT, EndReason.OOM, EndReason.DISK_FULL})


@dataclass(frozen=True, slots=True)
class Company:
    """What a member leaves behind. `others`: so many run on, or have completed. `min_size`: None for a gang that needs all."""

    min_size: int | None
    has_started: bool  # all members had, once
    others: int


def may_leave(rank: int, reason: EndReason, company: Company) -> bool:
    """Whether the others go on without it. Rank 0 writes the checkpoints, hands over the outputs, and is where the others meet."""
    if company.min_size is None or not company.has_started or rank == 0 or reason in _FOLLOWS:
        return False
    is_elsewhere = OUTCOMES[reason].job is JobState.QUEUED
    return company.others >= company.min_size and (is_elsewhere or reason in _OWN_FAILURES)


def attempt_reason(ends: Sequence[EndReason], *, cancel_requested: bool = False) -> EndReason:
    """Why the attempt ended; `ends` of those that had not left it, in the order in which their leases ended.

    The client's will first, then a fault of a node, then what sends the job elsewhere by nobody's fault, then the job's own failure, the
    earliest of its kind. COMPLETED only when all have.
    """
    if cancel_requested and EndReason.CANCELLED in ends:
        return EndReason.CANCELLED
    causes = [reason for reason in ends if reason not in _FOLLOWS]
    by_node = [reason for reason in causes if OUTCOMES[reason].fault is Fault.NODE]
    elsewhere = [reason for reason in causes if OUTCOMES[reason].job is JobState.QUEUED]
    for kind in (by_node, elsewhere, causes):
        if kind:
            return kind[0]
    return EndReason.GANG_ENDED if EndReason.GANG_ENDED in ends else EndReason.COMPLETED


def member_billing(own: EndReason, attempt: EndReason) -> Billing:
    """How a lease that ended for `own` is billed when its attempt ended for `attempt`.

    Who sent the job elsewhere is billed as the table of outcomes says. All others worked as they were told: up to the checkpoint from which
    the next attempt goes on, or in full when no node is to blame.
    """
    outcome = OUTCOMES[own]
    if own is not EndReason.GANG_ENDED and (outcome.job is JobState.QUEUED or outcome.billing is Billing.NONE):
        return outcome.billing
    if own is attempt:
        return outcome.billing
    ended = OUTCOMES[attempt]
    return Billing.CHECKPOINT if ended.job is JobState.QUEUED else ended.billing


def leaver_billing(own: EndReason, attempt: EndReason) -> Billing:
    """As `member_billing`, of one that had left: what it did since the checkpoint before is lost, as the others began there again. But when
    they all ended by what the job did itself, it did no worse than they."""
    if own in _OWN_FAILURES and attempt in _OWN_FAILURES:
        return member_billing(own, attempt)
    return Billing.NONE if OUTCOMES[own].billing is Billing.NONE else Billing.CHECKPOINT


def lost_since_checkpoint_ms(*, now_ms: int, started_ms: int, kept_ms: int, lost_before_ms: int | None) -> int:
    """Of a member that goes on: its work that is lost with one that left, as all begin again at the newest checkpoint. `kept_ms`: after
    `started_ms`, what is not lost; `lost_before_ms`: when the one before left, until when nothing is lost twice."""
    return max(0, now_ms - max(started_ms + kept_ms, lost_before_ms or 0))
