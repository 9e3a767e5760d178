"""What becomes of an attempt that runs on several nodes at once, from how each of its leases ended. Of one lease alone it is its own end.

An attempt ends as a whole. When one member ends otherwise than completed, the others are stopped (GANG_ENDED), and the reason of the
attempt is decided when all of them have ended: survivors often exit with an error because their peer was lost, long before anybody knows
of it, and that must not count as the job's own failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from torg_protocol.states import OUTCOMES, Billing, EndReason, Fault, JobState

# By itself none of these says why: what they followed from does.
_FOLLOWS = frozenset({EndReason.GANG_ENDED, EndReason.COMPLETED})


def attempt_reason(ends: Sequence[EndReason], *, cancel_requested: bool = False) -> EndReason:
    """Why the attempt ended; `ends` in the order in which its leases ended.

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
