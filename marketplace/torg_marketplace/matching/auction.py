"""Reference prices: a call auction per class of GPU over what is offered and what is asked for, cleared at one price.

Sell side: each free GPU at its node's ask. Buy side: each GPU that a waiting job asks for, at the job's bid. The largest quantity
is cleared for which the last buyer still pays what the last seller asks; every price in between the marginal bids and asks clears
it, and the middle is published (k = 0.5: with many traders nobody gains by misreporting; Rustichini, Satterthwaite and Williams,
1994). Nobody is charged this price: jobs pay the ask of the node they run on. It says what a class is worth now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantity:
    """So many GPUs at so many base units per GPU-hour."""

    price: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Clearing:
    """`price` is None when nobody asks for what is offered, or not enough for it. Best: the highest bid, the lowest ask."""

    price: int | None
    gpus: int
    best_bid: int | None
    best_ask: int | None
    gpus_offered: int
    gpus_wanted: int


def clear(asks: Sequence[Quantity], bids: Sequence[Quantity]) -> Clearing:
    sellers = sorted((item for item in asks if item.gpus > 0), key=lambda item: item.price)
    buyers = sorted((item for item in bids if item.gpus > 0), key=lambda item: -item.price)
    offered, wanted = sum(item.gpus for item in sellers), sum(item.gpus for item in buyers)
    cleared = _most_cleared(sellers, buyers)
    return Clearing(
        price=_middle(sellers, buyers, cleared) if cleared else None,
        gpus=cleared,
        best_bid=buyers[0].price if buyers else None,
        best_ask=sellers[0].price if sellers else None,
        gpus_offered=offered,
        gpus_wanted=wanted,
    )


def _most_cleared(sellers: Sequence[Quantity], buyers: Sequence[Quantity]) -> int:
    """One pass over both sides, a step at a time: while the next buyer pays what the next seller asks."""
    cleared, seller, buyer = 0, 0, 0
    left_to_sell = sellers[0].gpus if sellers else 0
    left_to_buy = buyers[0].gpus if buyers else 0
    while seller < len(sellers) and buyer < len(buyers) and buyers[buyer].price >= sellers[seller].price:
        step = min(left_to_sell, left_to_buy)
        cleared, left_to_sell, left_to_buy = cleared + step, left_to_sell - step, left_to_buy - step
        if not left_to_sell:
            seller += 1
            left_to_sell = sellers[seller].gpus if seller < len(sellers) else 0
        if not left_to_buy:
            buyer += 1
            left_to_buy = buyers[buyer].gpus if buyer < len(buyers) else 0
    return cleared


def _middle(sellers: Sequence[Quantity], buyers: Sequence[Quantity], cleared: int) -> int:
    """Between what keeps the last seller in and the next buyer out, and what keeps the last buyer in and the next seller out."""
    lowest = max(_price_at(sellers, cleared) or 0, _price_at(buyers, cleared + 1) or 0)
    last_buyer, next_seller = _price_at(buyers, cleared) or 0, _price_at(sellers, cleared + 1)
    highest = last_buyer if next_seller is None else min(last_buyer, next_seller)
    return (lowest + highest) // 2


def _price_at(side: Sequence[Quantity], number: int) -> int | None:
    """Price of the number-th GPU of a side, from 1; None when there are fewer."""
    for item in side:
        number -= item.gpus
        if number <= 0:
            return item.price
    return None
