"""The matching engine: which node runs a job.

Hard constraints first (`constraints`), then one score, lower is better:

    price x (1 + packing) x (1 + scarcity) x (1 + locality) / reliability

Every factor but the price is at least 1 and bounded, so nobody is sent to a node that is dearer than the cheapest by more than
the factors together. The engine keeps the fleet in columns, sorted by price; a decision looks at candidates from the cheapest
on and stops when no dearer one can win. It is told of every change (`put`, `take`, `give`), and asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torg_marketplace.matching.constraints import Constraint, constraints, has_room, passing
from torg_marketplace.matching.fleet import Fleet, Rows
from torg_marketplace.matching.mix import DemandMix
from torg_marketplace.matching.order import PriceOrder, PriceOrders
from torg_marketplace.matching.packing import Packing, outlook
from torg_marketplace.matching.scarcity import nothing_scarce, scarcity
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId

Floats = npt.NDArray[np.float64]

PACKING_WEIGHT = 0.2
SCARCITY_WEIGHT = 0.3
LOCALITY_WEIGHT = 0.1  # of a node that has to fetch everything
MOST_FACTOR = (1 + PACKING_WEIGHT) * (1 + SCARCITY_WEIGHT) * (1 + LOCALITY_WEIGHT)  # at full reliability
CANDIDATES = 512  # nodes with room that are compared, the cheapest
_FIRST_LOOK, _LONGEST_LOOK = 256, 16_384  # rows at once; each look is four times as long as the one before
_PRICES_LAST = 512  # changes or arrivals after which scarcity is priced again, or 2 % of a large fleet
_OUTLOOK_GROWS = 1.3  # times as many demands seen until packing's outlook is made again, at most HALF_LIFE / 2 more


@dataclass(frozen=True, slots=True)
class Score:
    """Factors of one node's score. `total` is price x all of them, in base units per GPU-hour."""

    price: int
    packing: float
    scarcity: float
    locality: float
    reliability: float
    total: float


@dataclass(frozen=True, slots=True)
class Decision:
    node_id: NodeId
    gpus: tuple[int, ...]
    score: Score
    compared: int  # nodes with room that were scored
    runner_up: tuple[NodeId, Score] | None


class Engine:
    def __init__(self, decimals: int, nodes: Iterable[NodeSnapshot] = (), mix: DemandMix | None = None) -> None:
        self.fleet = Fleet()
        self.mix = mix if mix is not None else DemandMix()
        self._decimals = decimals
        self._orders = PriceOrders()
        self._packing: Packing | None = None
        self._outlook_until = 0
        self._scarcity = nothing_scarce()
        self._changes = self._priced_at = 0
        for node in nodes:
            self.put(node)

    def put(self, node: NodeSnapshot) -> None:
        """A node joined, or anything about it changed."""
        self._orders.put(self.fleet, self.fleet.put(node))
        self._changes += 1

    def remove(self, node_id: NodeId) -> None:
        self._orders.remove(self.fleet.row_of[node_id])
        self.fleet.remove(node_id)
        self._changes += 1

    def observe(self, demand: Demand) -> None:
        """A job arrived: what comes after it is expected to be like what came. Once per job, whether it can run or not."""
        self.mix.observe(demand)
        self._changes += 1

    def take(self, node_id: NodeId, demand: Demand, gpus: tuple[int, ...]) -> None:
        """Raises ValueError when the node has no room for it: the engine never over-allocates."""
        row = self.fleet.row_of[node_id]
        free = self.fleet.free_gpus(row, demand)
        wanted = demand.spec.resources.gpus
        at = np.array([row], dtype=np.intp)
        if len(set(gpus)) != wanted or not set(gpus) <= set(free) or not has_room(self.fleet, at, demand)[0]:
            raise ValueError(f"{node_id} has no room for this on GPUs {gpus}")
        self.fleet.take(row, demand, gpus)
        self._changes += 1

    def give(self, node_id: NodeId, demand: Demand, gpus: tuple[int, ...]) -> None:
        """What was taken is free again. A node that has gone meanwhile is nobody's concern."""
        if (row := self.fleet.row_of.get(node_id)) is not None:
            self.fleet.give(row, demand, gpus)
            self._changes += 1

    def decide(self, demand: Demand) -> Decision | None:
        """The best of the nodes that can start it now; None when there is none. Changes nothing: `take` does."""
        self._look_ahead()
        rules = constraints(demand, self._decimals)
        found = self._candidates(demand, rules)
        if not found.rows.size:
            return None
        order = np.lexsort((self.fleet.tie[found.rows], found.factor, found.total))
        best = int(order[0])
        row = int(found.rows[best])
        return Decision(
            node_id=self.fleet.node_id(row),
            gpus=self._pack().best_gpus(row, demand) if demand.spec.resources.gpus else (),
            score=found.score(best),
            compared=found.rows.size,
            runner_up=None
            if order.size < 2
            else (self.fleet.node_id(int(found.rows[order[1]])), found.score(int(order[1]))),
        )

    def _candidates(self, demand: Demand, rules: list[Constraint]) -> _Scored:
        found = _Scored.nothing()
        for order in self._orders_for(demand):
            seen, best = 0, float("inf") if not found.rows.size else found.total.min()
            for rows, cheapest in _looks(order, demand):
                if cheapest > best or seen >= CANDIDATES:
                    break
                fit = passing(self.fleet, rows[has_room(self.fleet, rows, demand)], rules)[: CANDIDATES - seen]
                if fit.size:
                    scored = self._score(fit, demand)
                    found, seen = found.and_those(scored), seen + fit.size
                    best = min(best, scored.total.min())
        return found

    def _orders_for(self, demand: Demand) -> list[PriceOrder]:
        classes = demand.gpu_classes
        if not classes:
            return [self._orders.all]
        return [self._orders.of_class(self.fleet.codes.get(f"class {name}", -1)) for name in sorted(classes)]

    def _score(self, rows: Rows, demand: Demand) -> _Scored:
        fleet = self.fleet
        lost = self._pack().consumption(rows, demand)
        worth = self._scarcity.of(fleet.gpu_class[rows], demand)
        packing = 1 + PACKING_WEIGHT * lost / (1 + lost)
        scarce = 1 + SCARCITY_WEIGHT * worth / (1 + worth)
        local = 1 + LOCALITY_WEIGHT * self._missing(rows, demand)
        reliable = np.maximum(fleet.reputation[rows], 1) / 1000
        factor = packing * scarce * local / reliable
        price = fleet.price[rows]
        return _Scored(rows, price, packing, scarce, local, reliable, factor, np.round(price * factor, 9))

    def _missing(self, rows: Rows, demand: Demand) -> Floats:
        """Share of image and workspace that the node would have to fetch first."""
        wanted = [demand.spec.image]
        if demand.spec.workspace is not None:
            wanted.append(demand.spec.workspace.digest)
        codes = [self.fleet.codes.get(f"warm {item}", 0) for item in wanted]
        missing = np.full(rows.size, float(len(wanted)))
        for code in codes:
            if code:
                missing -= (self.fleet.warm[rows] == code).any(axis=1)
        return missing / len(wanted)

    def _pack(self) -> Packing:
        if self._packing is None:
            self._packing = Packing(self.fleet, outlook(self.mix, self.fleet))
        return self._packing

    def _look_ahead(self) -> None:
        """Now and then what is expected is worked out again; in between it stands still, so that work on it is kept."""
        if self.mix.seen >= self._outlook_until:
            self._packing = None
            self._outlook_until = int(self.mix.seen + min(20 + (_OUTLOOK_GROWS - 1) * self.mix.seen, 2_048))
        if self._priced_at == 0 or self._changes - self._priced_at >= max(_PRICES_LAST, len(self.fleet) // 50):
            self._scarcity = scarcity(self.mix, self.fleet)
            self._priced_at = self._changes


def _looks(order: PriceOrder, demand: Demand) -> Iterator[tuple[Rows, float]]:
    """Slices of the order, longer and longer, each with its cheapest price."""
    end, start, length = order.up_to(demand.price_limit), 0, _FIRST_LOOK
    rows, prices = order.rows, order.prices
    while start < end:
        yield rows[start : min(start + length, end)], prices[start]
        start, length = start + length, min(length * 4, _LONGEST_LOOK)


@dataclass(frozen=True, slots=True)
class _Scored:
    rows: Rows
    price: npt.NDArray[np.int64]
    packing: Floats
    scarcity: Floats
    locality: Floats
    reliability: Floats
    factor: Floats
    total: Floats

    @staticmethod
    def nothing() -> _Scored:
        none = np.zeros(0)
        return _Scored(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.int64), none, none, none, none, none, none)

    def and_those(self, others: _Scored) -> _Scored:
        if not self.rows.size:
            return others
        mine, theirs = (tuple(getattr(one, name) for name in _Scored.__slots__) for one in (self, others))
        return _Scored(*(np.concatenate(pair) for pair in zip(mine, theirs, strict=True)))

    def score(self, at: int) -> Score:
        return Score(
            price=int(self.price[at]),
            packing=round(self.packing[at].item(), 6),
            scarcity=round(self.scarcity[at].item(), 6),
            locality=round(self.locality[at].item(), 6),
            reliability=round(self.reliability[at].item(), 6),
            total=round(self.total[at].item(), 6),
        )
