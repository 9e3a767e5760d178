"""The call auction: no buyer pays above his bid, no seller gets less than his ask, and no trade that both want is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.matching.auction import Quantity, clear

sides = st.lists(st.builds(Quantity, price=st.integers(0, 50), gpus=st.integers(0, 5)), max_size=12)


def test_the_middle_of_the_marginal_bids_and_asks() -> None:
    asks = [Quantity(10, 2), Quantity(20, 1), Quantity(90, 8)]
    bids = [Quantity(100, 1), Quantity(60, 2), Quantity(15, 4)]
    cleared = clear(asks, bids)

    # Three change hands: the last seller asks 20, the last buyer bids 60; 15 stays out, and so does 90.
    assert (cleared.price, cleared.gpus) == (40, 3)
    assert (cleared.best_bid, cleared.best_ask, cleared.gpus_offered, cleared.gpus_wanted) == (100, 10, 11, 7)


def test_a_market_without_buyers_has_asks_and_no_price() -> None:
    cleared = clear([Quantity(10, 2)], [])
    assert (cleared.price, cleared.gpus, cleared.best_ask, cleared.best_bid) == (None, 0, 10, None)
    assert clear([Quantity(10, 2)], [Quantity(9, 1)]).price is None


@given(sides, sides)
def test_the_price_clears_the_market(asks: list[Quantity], bids: list[Quantity]) -> None:
    cleared = clear(asks, bids)
    sellers = sorted(item.price for item in asks for _ in range(item.gpus))
    buyers = sorted((item.price for item in bids for _ in range(item.gpus)), reverse=True)
    traded = sum(buyer >= seller for seller, buyer in zip(sellers, buyers, strict=False))

    assert cleared.gpus == traded
    assert (cleared.price is None) == (traded == 0)
    if cleared.price is not None:
        assert sellers[traded - 1] <= cleared.price <= buyers[traded - 1]
        assert sum(price < cleared.price for price in sellers) <= traded  # who stays out asks at least the price
        assert sum(price > cleared.price for price in buyers) <= traded
