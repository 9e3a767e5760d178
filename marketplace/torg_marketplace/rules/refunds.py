"""Pure decisions about refunds: how much may still be given back, who bears it, and which waiting payouts it is taken off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torg_protocol.refunds import BORNE_BY_NODE, RefundCause


@dataclass(frozen=True, slots=True)
class Waiting:
    """A payout that no order which could still land pays."""

    payout_id: str
    lease_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class Take:
    payout_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """from_node + from_fees + credit = amount, to the unit."""

    from_node: tuple[Take, ...]
    from_fees: tuple[Take, ...]
    credit: int


def refundable(paid: int, refunded: Iterable[int]) -> int:
    """What of a lease's price may still be given back: never more than was paid, whatever the causes."""
    return max(0, paid - sum(refunded))


def plan_refund(
    amount: int,
    cause: RefundCause,
    *,
    lease_id: str,
    paid: int,
    paid_to_node: int,
    node: Sequence[Waiting],
    fees: Sequence[Waiting],
) -> RefundPlan:
    """The node bears its share of the price where the cause is its own, out of what waits for it; whatever that does not cover the
    marketplace bears, out of the fees that wait; what is left is credit. Payouts of the lease itself come first."""
    share = amount * paid_to_node // paid if paid and cause in BORNE_BY_NODE else 0
    from_node = _take(node, share, lease_id)
    rest = amount - sum(item.amount for item in from_node)
    from_fees = _take(fees, rest, lease_id)
    return RefundPlan(from_node, from_fees, rest - sum(item.amount for item in from_fees))


def work_off(credit: int, fees: Sequence[Waiting]) -> tuple[Take, ...]:
    """What of the fees that wait covers credit from before."""
    return _take(fees, credit, "")


def _take(waiting: Sequence[Waiting], amount: int, lease_id: str) -> tuple[Take, ...]:
    takes = []
    for item in sorted(waiting, key=lambda payout: (payout.lease_id != lease_id, payout.payout_id)):
        part = min(item.amount, amount)
        if part > 0:
            takes.append(Take(item.payout_id, part))
            amount -= part
    return tuple(takes)
