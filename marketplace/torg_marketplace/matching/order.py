"""Rows in order of price, kept sorted while nodes come, go and change their price; and who of them has room, at a glance.

Beside the sorted rows lie copies of the few columns that say whether there is room, in the same order and zero for nodes that
take nothing now: a search reads them in one sweep, and looks closer only at rows that may do.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from torg_marketplace.matching.fleet import Fleet, Ints, Rows
from torg_marketplace.matching.kernel import Order
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand

_ONE_BY_ONE = 32  # more changes than this are cheaper sorted all at once
_SEARCHES_REMEMBERED = 256
_SWEEP = 4_096  # rows whose room is read at once
_FIRST_BATCH, _LONGEST_BATCH = (
    64,
    512,
)  # rows that are handed out together; each batch is twice as long as the one before


class PriceOrder:
    """Equal prices are ordered by a hash of the node's id: fixed, and nobody's favour. Reading applies what was changed."""

    def __init__(self, fleet: Fleet, code: int) -> None:
        self.code = code
        self._fleet = fleet
        self._rows: Rows = np.zeros(0, dtype=np.intp)
        self._prices: Ints = np.zeros(0, dtype=np.int64)
        self._ties: Ints = np.zeros(0, dtype=np.int64)
        self._changed: dict[int, tuple[int, int] | None] = {}  # row -> where it belongs now; None: gone
        self._places: dict[int, tuple[int, int]] = {}  # row -> (price, tie) as sorted in
        self._lines: Ints | None = None  # until a compiled search asks
        self._align()

    def put(self, row: int, price: int, tie: int) -> None:
        if self._places.get(row) == (price, tie) and row not in self._changed:
            self.refresh(row)
        else:
            self._changed[row] = (price, tie)

    def remove(self, row: int) -> None:
        self._changed[row] = None

    def refresh(self, row: int) -> None:
        """What is free on the row has changed."""
        if self._changed:
            return  # all rows are read again when that is applied
        at, fleet = self._at[row], self._fleet
        takes = fleet.live[row] and fleet.accepting[row]
        self._whole[at] = fleet.gpus_whole[row] if takes else 0
        self._most[at] = fleet.gpu_most_free[row] if takes else 0
        self._slots[at] = fleet.slots_free[row] if takes else 0
        if self._lines is not None:
            self._lines[at] = fleet.numbers[row]

    @property
    def cheapest(self) -> float:
        """Infinite when nobody is here."""
        self._apply()
        return self._cheapest

    def may_have(self, vram_bytes: int) -> bool:
        """Whether a GPU of some node here has that much memory."""
        self._apply()
        return self._most_vram >= vram_bytes

    def with_room(self, demand: Demand) -> Iterator[tuple[Rows, int]]:
        """Rows that may have room, cheapest first and none above the price limit, in batches with their cheapest price."""
        self._apply()
        gpus = demand.spec.resources.gpus
        if not gpus:
            column, least = self._slots, demand.spec.resources.billable_gpus
        elif demand.gpu_milli == WHOLE_MILLI:
            column, least = self._whole, gpus
        else:
            column, least = self._most, demand.gpu_milli
        limit, end, length = demand.price_limit, self._rows.size, _FIRST_BATCH
        if limit is not None:
            end = int(np.searchsorted(self._prices, limit, side="right"))
        for start in range(0, end, _SWEEP):
            places = start + (column[start : min(start + _SWEEP, end)] >= least).nonzero()[0]
            given = 0
            while given < places.size:
                batch = places[given : given + length]
                yield self._rows[batch], int(self._prices[batch[0]])
                given, length = given + length, min(2 * length, _LONGEST_BATCH)

    def columns(self, demand: Demand) -> Order:
        """For a compiled search: all rows, what is known of them, and what each has free of what the demand takes."""
        self._apply()
        if self._lines is None:
            self._lines = np.ascontiguousarray(self._fleet.numbers[self._rows])
        if not demand.spec.resources.gpus:
            return Order(self._rows, self._lines, self._slots)
        return Order(self._rows, self._lines, self._whole if demand.gpu_milli == WHOLE_MILLI else self._most)

    def _apply(self) -> None:
        if not self._changed:
            return
        changed = {row: place for row, place in self._changed.items() if place != self._places.get(row)}
        self._changed = {}
        if len(changed) > _ONE_BY_ONE:
            self._rebuild(changed)
        else:
            for row, place in changed.items():
                if (old := self._places.pop(row, None)) is not None:
                    self._delete(*old)
                if place is not None:
                    self._places[row] = place
                    self._insert(row, *place)
        self._align()

    def _delete(self, price: int, tie: int) -> None:
        at = self._find(price, tie)
        self._rows = np.delete(self._rows, at)
        self._prices, self._ties = np.delete(self._prices, at), np.delete(self._ties, at)

    def _insert(self, row: int, price: int, tie: int) -> None:
        at = self._find(price, tie)
        self._rows = np.insert(self._rows, at, row)
        self._prices, self._ties = np.insert(self._prices, at, price), np.insert(self._ties, at, tie)

    def _find(self, price: int, tie: int) -> int:
        low, high = (int(np.searchsorted(self._prices, price, side=side)) for side in ("left", "right"))
        return low + int(np.searchsorted(self._ties[low:high], tie))

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

    def _align(self) -> None:
        size = self._rows.size
        self._lines = None
        self._cheapest = self._prices[0].item() if size else inf
        self._most_vram = int(self._fleet.vram[self._rows, 0].max(initial=0))
        self._at: Ints = np.full(self._fleet.present.size, -1, dtype=np.int64)
        self._at[self._rows] = np.arange(size)
        takes = self._fleet.live[self._rows] & self._fleet.accepting[self._rows]
        self._whole = self._fleet.gpus_whole[self._rows] * takes
        self._most = self._fleet.gpu_most_free[self._rows] * takes
        self._slots = self._fleet.slots_free[self._rows] * takes


class PriceOrders:
    """One order per class of GPU: a class has one scarcity, and a search skips classes that will not do or cannot win."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._by_class: dict[int, PriceOrder] = {}
        self._class_of: dict[int, int] = {}
        self._found: dict[tuple[frozenset[str], int], list[PriceOrder]] = {}  # until an offer changes

    def put(self, row: int) -> None:
        """The node is new, or its offer or what is free on it has changed."""
        fleet = self._fleet
        code, price, tie = int(fleet.gpu_class[row]), int(fleet.price[row]), int(fleet.tie[row])
        if self._class_of.get(row, code) != code:
            self.remove(row)
        self._class_of[row] = code
        self._found.clear()
        if code not in self._by_class:
            self._by_class[code] = PriceOrder(fleet, code)
        self._by_class[code].put(row, price, tie)

    def remove(self, row: int) -> None:
        self._found.clear()
        self._by_class[self._class_of.pop(row)].remove(row)

    def refresh(self, row: int) -> None:
        """Only what is free has changed."""
        self._by_class[self._class_of[row]].refresh(row)

    def for_demand(self, demand: Demand) -> list[PriceOrder]:
        """Together they hold every node that will do, the class with the cheapest node first."""
        key = demand.gpu_classes, demand.spec.resources.min_vram or 0
        if key not in self._found:
            if len(self._found) >= _SEARCHES_REMEMBERED:
                self._found.clear()
            self._found[key] = self._look_up(*key)
        return self._found[key]

    def _look_up(self, classes: frozenset[str], vram_bytes: int) -> list[PriceOrder]:
        if classes:
            codes = {self._fleet.codes.get(f"class {name}", -1) for name in classes}
            found = [self._by_class[code] for code in codes if code in self._by_class]
        else:
            found = list(self._by_class.values())
        may_do = [order for order in found if order.may_have(vram_bytes)]
        return sorted(may_do, key=lambda order: (order.cheapest, order.code))
