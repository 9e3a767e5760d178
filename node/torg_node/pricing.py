"""Which price a new node might ask: what its class of hardware was worth lately, and what it costs in electricity. Pure.

Prices are base units of the market's token per GPU-hour (per slot-hour without a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from torg_protocol.api import NodeView, ReferencePrice

_ABOVE_BREAK_EVEN_PERCENT = 120


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`basis` says in words where the price comes from."""

    price_per_gpu_hour: int
    basis: str


def break_even(watts: int, kwh_price: int, units: int) -> int:
    """Base units per unit and hour that electricity costs at full load; `kwh_price` is base units per kWh. Rounded up."""
    hourly = Decimal(watts) * kwh_price / 1000 / max(1, units)
    return int(hourly.to_integral_value(rounding=ROUND_CEILING))


def suggest(
    gpu_class: str, traded: Sequence[ReferencePrice], offers: Sequence[NodeView], least: int | None
) -> Suggestion | None:
    """None when this market knows nothing of such hardware and no `least` (a break-even) is known either."""
    found = _of_market(gpu_class, traded, offers)
    if least is None:
        return found
    floor = least * _ABOVE_BREAK_EVEN_PERCENT // 100
    if found is None:
        return Suggestion(floor, "a fifth more than its electricity; the market knows no price of such hardware")
    if found.price_per_gpu_hour < floor:
        return Suggestion(floor, f"a fifth more than its electricity, which is above {found.basis}")
    return found


def _of_market(gpu_class: str, traded: Sequence[ReferencePrice], offers: Sequence[NodeView]) -> Suggestion | None:
    for price in sorted(traded, key=lambda item: item.at_ms, reverse=True):
        if price.gpu_class == gpu_class and price.price_per_gpu_hour is not None:
            return Suggestion(price.price_per_gpu_hour, "what such hardware was worth in the market's newest auction")
    asks = sorted(offer.price_per_gpu_hour for offer in offers if offer.gpu_class == gpu_class)
    if not asks:
        return None
    return Suggestion(asks[(len(asks) - 1) // 2], f"the middle of what {len(asks)} such nodes ask now")
