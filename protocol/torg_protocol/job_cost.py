"""What a job can cost at the most. Client and marketplace each work it out for themselves, by this one formula: a cap that one of them takes for
too small is refused, one that is too large is signed for nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torg_protocol.jobspec import JobSpec, VerifyReplay
from torg_protocol.money import cost, parse_amount

PERMILLE = 1000
VERIFICATION_PERMILLE: Mapping[str, int] = {"metric": 10, "replay": 20, "activation": 10}
"""Of what the work costs; of replay for each segment. A quorum's price is that of its replicas."""


def verification_permille(spec: JobSpec) -> int:
    segments = spec.verify.segments if isinstance(spec.verify, VerifyReplay) else 1
    return VERIFICATION_PERMILLE.get(spec.verify.policy, 0) * segments


def verification_price(spec: JobSpec, work: int) -> int:
    """What verification costs besides so much paid work, rounded down. The marketplace has it, whether the work is drawn for an audit or not."""
    return work * verification_permille(spec) // PERMILLE


def work_within(spec: JobSpec, amount: int) -> int:
    """The most work that costs this amount with its verification."""
    return amount * PERMILLE // (PERMILLE + verification_permille(spec))


def full_cost(spec: JobSpec, price_per_gpu_hour: int, duration_ms: int) -> int:
    """In base units: every node of a gang, or every replica of a quorum, for all of the time, and the verification of that."""
    price = spec.resources.price_of(price_per_gpu_hour)
    work = spec.nodes_at_once * spec.replicas * cost(price, spec.resources.billable_gpus, duration_ms)
    return work + verification_price(spec, work)


def largest_cost(spec: JobSpec, price_per_gpu_hour: int, duration_ms: int, decimals: int) -> int:
    """The same, or the client's own `max_cost` if that is less."""
    full = full_cost(spec, price_per_gpu_hour, duration_ms)
    if spec.limits.max_cost is None:
        return full
    return min(full, parse_amount(spec.limits.max_cost, decimals, field="limits.max_cost"))
