"""What a job may cost at most, and how long a sum lasts. Integer base units; amounts round down, once per usage record."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torg_protocol.errors import Invalid
from torg_protocol.job_cost import largest_cost
from torg_protocol.jobspec import JobSpec
from torg_protocol.money import MS_PER_HOUR, parse_amount

MAX_ACCEPTED_AMOUNT = 2**63 - 1  # the database's integers end here
ABSURD_TIMES_MIDDLE = 4


def max_price(spec: JobSpec, decimals: int) -> int | None:
    """The client's own price cap per GPU-hour in base units. Raises Invalid for a malformed amount."""
    text = spec.limits.max_price_per_hour
    return None if text is None else parse_amount(text, decimals, field="limits.max_price_per_hour")


def price_ceiling(
    fitting_prices: Sequence[int], spec_cap: int | None, max_attempts: int, at_once: int = 1
) -> int | None:
    """The highest price per GPU-hour that this job may ever be charged; None when nothing fits. It is also the job's bid: what
    is held for it, so that nobody bids what he could not be charged.

    `fitting_prices`: cheapest first. `at_once`: nodes of a gang, which all must be under it. The client's own cap, if there is one. Otherwise as many nodes as the job has attempts must be under it, so that a retry has
    somewhere to go; offers far above the middle of the market do not count: an absurd one must not raise what every client has
    to hold.
    """
    if len(fitting_prices) < at_once:
        return None
    if spec_cap is not None:
        return spec_cap if fitting_prices[at_once - 1] <= spec_cap else None
    within = len(fitting_prices)
    middle = fitting_prices[(within - 1) // 2]
    if middle > 0:
        within = bisect_right(fitting_prices, middle * ABSURD_TIMES_MIDDLE)
    return fitting_prices[max(min(max_attempts - 1 + at_once, within), at_once) - 1]


def max_amount(spec: JobSpec, ceiling: int, decimals: int, *, max_duration_ms: int | None = None) -> int:
    """What a submit holds: ceiling x nodes (or replicas) x GPUs x max_duration (the spec's, unless it was extended), or the client's own max_cost if
    that is less."""
    full = largest_cost(spec, ceiling, max_duration_ms or spec.limits.max_duration, decimals)
    if full > MAX_ACCEPTED_AMOUNT:
        raise Invalid(
            "this job could cost more than can be held",
            code="amount_too_large",
            field="limits.max_duration",
            value=full,
            hint="set limits.max_cost",
        )
    return full


def affordable_ms(amount: int, price_per_gpu_hour: int, billable_gpus: int) -> int | None:
    """The longest useful time whose cost is at most `amount`; None when time is free."""
    rate = price_per_gpu_hour * billable_gpus
    return None if rate == 0 else ((amount + 1) * MS_PER_HOUR - 1) // rate
