"""Useful time: from container start to exit. Pure; the marketplace clips what it did not see."""

from __future__ import annotations

from collections.abc import Sequence

from torg_protocol.messages import Grant
from torg_protocol.money import MS_PER_HOUR, cost
from torg_protocol.usage import SignedUsage, UsageRecord


def next_record(
    grant: Grant, countersigned: Sequence[SignedUsage], *, started_at_ms: int, until_ms: int, final: bool
) -> UsageRecord:
    """The claim for everything useful that is not countersigned yet. Builds on the newest countersigned record, because the
    marketplace may have signed less than was claimed."""
    newest = countersigned[-1].record if countersigned else None
    start_ms = newest.end_ms if newest else started_at_ms
    recorded_ms = sum(item.record.useful_ms for item in countersigned)
    end_ms = max(start_ms, until_ms)
    useful_ms = min(max(0, until_ms - started_at_ms - recorded_ms), end_ms - start_ms)
    return UsageRecord(
        lease_id=grant.lease_id,
        sequence=newest.sequence + 1 if newest else 1,
        job_id=grant.job_id,
        attempt=grant.attempt,
        node=grant.node,
        vault=grant.commitment.vault,
        start_ms=start_ms,
        end_ms=end_ms,
        useful_ms=useful_ms,
        price_per_gpu_hour=grant.price_per_gpu_hour,
        billable_gpus=grant.billable_gpus,
        amount=cost(grant.price_per_gpu_hour, grant.billable_gpus, useful_ms),
        final=final,
    )


def budget_ms(grant: Grant) -> int | None:
    """Useful time that `max_amount` pays for; None when it pays for all that the lease may last."""
    if cost(grant.price_per_gpu_hour, grant.billable_gpus, grant.max_duration_ms) <= grant.max_amount:
        return None
    return grant.max_amount * MS_PER_HOUR // (grant.price_per_gpu_hour * grant.billable_gpus)
