"""Rows in order of price, kept sorted while nodes come, go and change their price."""

from __future__ import annotations

import numpy as np

from torg_marketplace.matching.fleet import Fleet, Ints, Rows

_ONE_BY_ONE = 32  # more changes than this are cheaper sorted all at once


class PriceOrder:
    """Equal prices are ordered by a hash of the node's id: fixed, and nobody's favour. Reading applies what was changed."""

    def __init__(self) -> None:
        self._rows: Rows = np.zeros(0, dtype=np.intp)
        self._prices: Ints = np.zeros(0, dtype=np.int64)
        self._ties: Ints = np.zeros(0, dtype=np.int64)
        self._changed: dict[int, tuple[int, int] | None] = {}  # row -> where it belongs now; None: gone
        self._places: dict[int, tuple[int, int]] = {}  # row -> (price, tie) as sorted in

    def put(self, row: int, price: int, tie: int) -> None:
        self._changed[row] = (price, tie)

    def remove(self, row: int) -> None:
        self._changed[row] = None

    @property
    def rows(self) -> Rows:
        self._apply()
        return self._rows

    @property
    def prices(self) -> Ints:
        self._apply()
        return self._prices

    def up_to(self, price: int | None) -> int:
        """How many rows ask at most this."""
        return self.rows.size if price is None else int(np.searchsorted(self.prices, price, side="right"))

    def _apply(self) -> None:
        if not self._changed:
            return
        changed = {row: place for row, place in self._changed.items() if place != self._places.get(row)}
        self._changed = {}
        if len(changed) > _ONE_BY_ONE:
            self._rebuild(changed)
            return
        for row, place in changed.items():
            if (old := self._places.pop(row, None)) is not None:
                self._delete(*old)
            if place is not None:
                self._places[row] = place
                self._insert(row, *place)

    def _delete(self, price: int, tie: int) -> None:
        at = self._find(price, tie)
        self._rows, self._prices, self._ties = (
            np.delete(column, at) for column in (self._rows, self._prices, self._ties)
        )

    def _insert(self, row: int, price: int, tie: int) -> None:
        at = self._find(price, tie)
        self._rows = np.insert(self._rows, at, row)
        self._prices, self._ties = np.insert(self._prices, at, price), np.insert(self._ties, at, tie)

    def _find(self, price: int, tie: int) -> int:
        low, high = (
            np.searchsorted(self._prices, price, side="left"),
            np.searchsorted(self._prices, price, side="right"),
        )
        return int(low + np.searchsorted(self._ties[low:high], tie))

    def _rebuild(self, changed: dict[int, tuple[int, int] | None]) -> None:
        for row, place in changed.items():
            if place is None:
                self._places.pop(row, None)
            else:
                self._places[row] = place
        rows = np.fromiter(self._places, dtype=np.intp, count=len(self._places))
        places = np.array(list(self._places.values()), dtype=np.int64).reshape(-1, 2)
        order = np.lexsort((places[:, 1], places[:, 0]))
        self._rows, self._prices, self._ties = rows[order], places[order, 0].copy(), places[order, 1].copy()


class PriceOrders:
    """One order of all nodes, and one per class of GPU."""

    def __init__(self) -> None:
        self.all = PriceOrder()
        self._by_class: dict[int, PriceOrder] = {}
        self._class_of: dict[int, int] = {}

    def put(self, fleet: Fleet, row: int) -> None:
        code, price, tie = int(fleet.gpu_class[row]), int(fleet.price[row]), int(fleet.tie[row])
        if self._class_of.get(row, code) != code:
            self.remove(row)
        self._class_of[row] = code
        self.all.put(row, price, tie)
        self._by_class.setdefault(code, PriceOrder()).put(row, price, tie)

    def remove(self, row: int) -> None:
        self.all.remove(row)
        self._by_class[self._class_of.pop(row)].remove(row)

    def of_class(self, code: int) -> PriceOrder:
        return self._by_class.get(code, _NOBODY)


_NOBODY = PriceOrder()
