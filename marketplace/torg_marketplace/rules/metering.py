"""Useful time: what the node claims, clipped to what the marketplace saw, to what the lease allows, and, while the job can
still be lost, to its newest durable checkpoint.

All times are milliseconds. "Useful" runs from container start to container exit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.rules.pricing import affordable_ms
from torg_protocol.money import cost
from torg_protocol.states import Billing
from torg_protocol.usage import UsageRecord


def seen_start_ms(*, claimed_start_ms: int, received_ms: int, granted_ms: int, connected_ms: int) -> int:
    """When a container started, by the marketplace's clock.

    While the node was connected, the receipt of its STARTED is the time. What started before the node's newest connection
    (our outage, or its own) started when the node says, within the time in which we could not see it: between grant and
    connection. A node that was connected all the while has no such time, whatever its clock or its claim says.
    """
    unseen_until_ms = min(connected_ms, received_ms)
    if unseen_until_ms <= granted_ms or claimed_start_ms >= unseen_until_ms:
        return received_ms
    return max(claimed_start_ms, granted_ms)


@dataclass(frozen=True, slots=True)
class Meter:
    """What is known about a lease's useful time when a record is to be made."""

    claimed_ms: int  # useful time in all, by the node
    seen_ms: int  # from the start that we saw to now, to the exit that we saw, or to when it had to end
    skew_ms: int
    checkpoint_ms: int  # useful time at the newest durable checkpoint
    max_duration_ms: int
    max_amount: int
    price_per_gpu_hour: int
    billable_gpus: int
    recorded_ms: int = 0  # in records that were countersigned before
    recorded_amount: int = 0
    waited_ms: int = (
        0  # of it for other leases of its attempt, to start too, or lost with one that left: of no use to the job
    )


def worked_ms(meter: Meter) -> int:
    """How long the container ran, as far as it can be believed."""
    return max(0, min(meter.claimed_ms, meter.seen_ms + meter.skew_ms, meter.max_duration_ms))


def useful_ms(meter: Meter) -> int:
    """Useful time in all that can be believed, whoever pays for it."""
    return max(0, worked_ms(meter) - meter.waited_ms)


def payable_ms(meter: Meter, billing: Billing) -> int:
    """Useful time of the next record: what is payable now in all, less what was recorded, within the budget.

    FULL once the container has ended for a reason that is billed; CHECKPOINT while the job runs, and when it was lost.
    """
    total = useful_ms(meter)
    if billing is Billing.NONE:
        total = 0
    elif billing is Billing.CHECKPOINT:
        total = min(total, max(0, meter.checkpoint_ms - meter.waited_ms))
    fresh = max(0, total - meter.recorded_ms)
    budget = affordable_ms(meter.max_amount - meter.recorded_amount, meter.price_per_gpu_hour, meter.billable_gpus)
    return fresh if budget is None else max(0, min(fresh, budget))


def claimed_total_ms(*, claimed_before_ms: int, record: UsageRecord, claimed_start_ms: int) -> int:
    """Useful time in all that a record claims. Time is useful without gaps, so a sum that exceeds the time since the start
    (because the node's record begins where a clipped one ended) means the time since the start."""
    return max(claimed_before_ms, min(claimed_before_ms + record.useful_ms, record.end_ms - claimed_start_ms))


@dataclass(frozen=True, slots=True)
class RecordFrame:
    """What all usage records of a lease share, and where the next one begins."""

    template: UsageRecord
    sequence: int
    start_ms: int


def next_record(frame: RecordFrame, *, useful: int, end_ms: int, final: bool) -> UsageRecord:
    """The marketplace's record: its interval holds its useful time and touches the one before."""
    template = frame.template
    return template.model_copy(
        update={
            "sequence": frame.sequence,
            "start_ms": frame.start_ms,
            "end_ms": max(end_ms, frame.start_ms + useful),
            "useful_ms": useful,
            "amount": cost(template.price_per_gpu_hour, template.billable_gpus, useful),
            "final": final,
        }
    )
