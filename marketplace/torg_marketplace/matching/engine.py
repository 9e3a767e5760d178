"""The matching engine: which node runs a job.

Hard constraints first (`constraints`), then one score, lower is better:

    price x (1 + packing) x (1 + scarcity) x (1 + locality) / reliability

Every factor but the price is at least 1 and bounded, so nobody is sent to a node that is dearer than the cheapest by more than
the factors together. The engine keeps the fleet in columns, sorted by price; a decision looks at candidates from the cheapest
on and stops when no dearer one can win. It is told of every change (`put`, `take`, `give`), and asks nobody.

Spot jobs see the nodes that have a spot price, at that price: an engine of its own beside this one (`of`), told of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from torg_marketplace.matching import kernel
from torg_marketplace.matching.compiled import CompiledSearch
from torg_marketplace.matching.constraints import has_room, passing, search_constraints
from torg_marketplace.matching.contest import Contest, Entries, Score
from torg_marketplace.matching.fleet import Fleet, Rows
from torg_marketplace.matching.mix import DemandMix
from torg_marketplace.matching.order import PriceOrders
from torg_marketplace.matching.packing import REACH_SHARE, Floats, Packing, outlook
from torg_marketplace.matching.scarcity import nothing_scarce, scarcity
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import JobSpec

PACKING_WEIGHT = 0.2
SCARCITY_WEIGHT = 0.3
LOCALITY_WEIGHT = 0.1  # of a node that has to fetch everything
MOST_FACTOR = (1 + PACKING_WEIGHT) * (1 + SCARCITY_WEIGHT) * (1 + LOCALITY_WEIGHT)  # at full reliability
CANDIDATES = 512  # nodes with room that are compared, the cheapest
_PRICES_LAST = 512  # changes or arrivals after which scarcity is priced again; 5 % of a large fleet
_OUTLOOK_GROWS = 1.3  # times as many demands seen until packing's outlook is made again, at most HALF_LIFE / 2 more


class Decision(NamedTuple):
    node_id: NodeId
    gpus: tuple[int, ...]
    score: Score
    runner_up: tuple[NodeId, Score] | None


class Engine:
    compiled_from = 2_000  # nodes; the compiled search (see `kernel`) is worth its loading only for large fleets

    def __init__(self, decimals: int, nodes: Iterable[NodeSnapshot] = (), mix: DemandMix | None = None) -> None:
        self.fleet = Fleet()
        self.mix = mix if mix is not None else DemandMix()
        self.decimals = decimals
        self._orders = PriceOrders(self.fleet)
        self._packing = Packing(self.fleet, outlook(self.mix, self.fleet))
        self._compiled: CompiledSearch | None = None
        self._outlook_until = 0
        self._scarcity = nothing_scarce()
        self._changes = self._priced_at = 0
        self._spot: Engine | None = None  # until somebody has a spot price
        for node in nodes:
            self.put(node)

    def of(self, spec: JobSpec) -> Engine:
        """The engine that decides about such jobs. Tell this one of changes, ask that one."""
        return self._spot_engine() if spec.spot else self

    def _spot_engine(self) -> Engine:
        if self._spot is None:
            self._spot = Engine(self.decimals, mix=self.mix)
            self._spot.compiled_from = self.compiled_from
        return self._spot

    def put(self, node: NodeSnapshot) -> None:
        """A node joined, or anything about it changed."""
        self._orders.put(self.fleet.put(node))
        self._changes += 1
        if (spot := node.at_spot_price()) is not None:
            self._spot_engine().put(spot)
        elif self._spot is not None and node.node_id in self._spot.fleet.row_of:
            self._spot.remove(node.node_id)

    def remove(self, node_id: NodeId) -> None:
        if self._spot is not None and node_id in self._spot.fleet.row_of:
            self._spot.remove(node_id)
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
        if not self.fleet.has_room(row, demand, gpus):
            raise ValueError(f"{node_id} has no room for this on GPUs {gpus}")
        self.fleet.take(row, demand, gpus)
        self._orders.refresh(row)
        self._changes += 1
        if self._spot is not None and node_id in self._spot.fleet.row_of:
            self._spot.take(node_id, demand, gpus)

    def give(self, node_id: NodeId, demand: Demand, gpus: tuple[int, ...]) -> None:
        """What was taken is free again. A node that has gone meanwhile is nobody's concern."""
        if (row := self.fleet.row_of.get(node_id)) is not None:
            self.fleet.give(row, demand, gpus)
            self._orders.refresh(row)
            self._changes += 1
        if self._spot is not None:
            self._spot.give(node_id, demand, gpus)

    def decide(self, demand: Demand) -> Decision | None:
        """The best of the nodes that can start it now; None when there is none. Changes nothing: `take` does."""
        self._look_ahead()
        scan = kernel.scan if len(self.fleet) >= self.compiled_from else None
        ranked = self._search(demand).best_two() if scan is None else self._search_compiled(scan, demand)
        if not ranked:
            return None
        row, score = ranked[0]
        return Decision(
            node_id=self.fleet.node_id(row),
            gpus=self._packing.best_gpus(row, demand) if demand.spec.resources.gpus else (),
            score=score,
            runner_up=(self.fleet.node_id(ranked[1][0]), ranked[1][1]) if len(ranked) > 1 else None,
        )

    def _search(self, demand: Demand) -> Contest:
        """At most CANDIDATES with room are looked at per class."""
        rules = search_constraints(demand, self.decimals)
        contest, scarcity_of = Contest(self.fleet), self._scarce(demand)
        for order in self._orders.for_demand(demand):
            if order.cheapest > contest.least:
                break
            scarce, looked_at = scarcity_of(order.code), 0
            for batch, cheapest in order.with_room(demand):
                if looked_at >= CANDIDATES or cheapest * scarce > contest.least:
                    break
                fit = passing(self.fleet, batch[has_room(self.fleet, batch, demand)], rules)[: CANDIDATES - looked_at]
                if fit.size:
                    looked_at += fit.size
                    self._score(contest, fit, demand, scarce)
        return contest

    def _search_compiled(self, scan: kernel.Scan, demand: Demand) -> list[tuple[int, Score]]:
        """The best two, as `_search` finds them."""
        if self._compiled is None:
            weights = (PACKING_WEIGHT, LOCALITY_WEIGHT, REACH_SHARE, CANDIDATES)
            self._compiled = CompiledSearch(self.fleet, self._packing.expected, weights)
        orders, remembered = self._orders.for_demand(demand), self._packing.remembered(demand)
        lines = self._compiled.best_two(scan, demand, orders, remembered, self._scarce(demand))
        return [(int(line[kernel.ROW]), self._score_of(*line)) for line in lines]

    def _score_of(
        self, at: float, total: float, _factor: float, packing: float, locality: float, scarcity: float
    ) -> Score:
        row = int(at)
        reliability = max(self.fleet.reputation.item(row), 1) / 1000
        return Score(self.fleet.price.item(row), packing, scarcity, locality, reliability, total)

    def _scarce(self, demand: Demand) -> Callable[[int], float]:
        """The factor of each class, by its code."""
        worth_on = self._scarcity.of(demand)

        def factor(code: int) -> float:
            worth = worth_on(code)
            return 1 + SCARCITY_WEIGHT * worth / (1 + worth)

        return factor

    def _score(self, contest: Contest, rows: Rows, demand: Demand, scarce: float) -> None:
        """Packing is the dearest to work out and its factor is bounded: it is left out of rows that lose without it."""
        fleet = self.fleet
        price = fleet.price[rows]
        local = 1 + LOCALITY_WEIGHT * self._missing(rows, demand)
        reliable = np.maximum(fleet.reputation[rows], 1) / 1000
        factor = local * (scarce / reliable)
        total = price * factor
        kept = (total <= min(total.min().item() * (1 + PACKING_WEIGHT), contest.least)).nonzero()[0]
        if not kept.size:
            return
        lost = self._packing.consumption(rows[kept], demand)
        packing = 1 + PACKING_WEIGHT * lost / (1 + lost)
        contest.enter(
            Entries(
                rows=rows[kept],
                price=price[kept],
                packing=packing,
                scarcity=scarce,
                locality=local[kept],
                reliability=reliable[kept],
                factor=factor[kept] * packing,
                total=total[kept] * packing,
            )
        )

    def _missing(self, rows: Rows, demand: Demand) -> Floats:
        """Share of image, workspace and volumes that the node would have to fetch first."""
        wanted = [*demand.spec.images, *demand.begins_with]
        if demand.spec.workspace is not None:
            wanted.append(demand.spec.workspace.digest)
        missing = np.ones(rows.size)
        for item in wanted:
            if (code := self.fleet.codes.get(f"warm {item}")) is not None:
                missing -= (self.fleet.warm[rows] == code).any(axis=1) / len(wanted)
        return missing

    def _look_ahead(self) -> None:
        """Now and then what is expected is worked out again; in between it stands still, so that work on it is kept."""
        if self.mix.seen >= self._outlook_until:
            self._packing, self._compiled = Packing(self.fleet, outlook(self.mix, self.fleet)), None
            self._outlook_until = int(self.mix.seen + min(20 + (_OUTLOOK_GROWS - 1) * self.mix.seen, 2_048))
        if self._priced_at == 0 or self._changes - self._priced_at >= max(_PRICES_LAST, len(self.fleet) // 20):
            self._scarcity = scarcity(self.mix, self.fleet)
            self._priced_at = self._changes
