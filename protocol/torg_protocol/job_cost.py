"""What a job can cost at the most. Client and marketplace each work it out for themselves, by this one formula: a cap that one of them takes for
too small is refused, one that is too large is signed for nothing."""

from __future__ import annotations

from torg_protocol.jobspec import JobSpec
from torg_protocol.money import cost, parse_amount


def full_cost(spec: JobSpec, price_per_gpu_hour: int, duration_ms: int) -> int:
    """In base units: every node of a gang, or every replica of a quorum, for all of the time."""
    price = spec.resources.price_of(price_per_gpu_hour)
    return spec.nodes_at_once * spec.replicas * cost(price, spec.resources.billable_gpus, duration_ms)


def largest_cost(spec: JobSpec, price_per_gpu_hour: int, duration_ms: int, decimals: int) -> int:
    """The same, or the client's own `max_cost` if that is less."""
    full = full_cost(spec, price_per_gpu_hour, duration_ms)
    if spec.limits.max_cost is None:
        return full
    return min(full, parse_amount(spec.limits.max_cost, decimals, field="limits.max_cost"))
