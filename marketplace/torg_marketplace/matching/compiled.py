"""What the compiled search (`kernel`) is told: fleet, order, demand and outlook as plain arrays and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from torg_marketplace.matching import kernel
from torg_marketplace.matching.constraints import (
    billed_gpu_ms,
    is_paid_at_the_end,
    isolation_levels_for,
    pulled_images,
)
from torg_marketplace.matching.fleet import MOST, WITH_ENGINE, Fleet, egress_bits, isolation_bits, version_code
from torg_marketplace.matching.order import PriceOrder
from torg_marketplace.matching.packing import Outlook
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand, units_needed
from torg_protocol.ids import NodeId

_NOBODY = np.array([kernel.NOBODY, kernel.NOBODY])
Line = Sequence[float]  # of the podium


class CompiledSearch:
    """What stays between searches: views of the fleet's columns, tables of the outlook, a place for the best."""

    def __init__(self, fleet: Fleet, outlook: Outlook, weights: Sequence[float]) -> None:
        self._podium = _NOBODY.copy()
        self._fleet = fleet
        self._outlook = outlook
        self._weights = np.array(weights, dtype=np.float64)
        self._columns = self._view()
        self._expected: dict[int, kernel.Expected] = {}

    def best_two(
        self,
        scan: kernel.Scan,
        demand: Demand,
        orders: Iterable[PriceOrder],
        remembered: kernel.Remembered,
        scarce: Callable[[int], float],
    ) -> list[Line]:
        """Lines of the podium. `scarce`: a class's factor, by its code."""
        podium, columns, asked = self._podium, self._columns_now(), asked_of(demand, self._fleet)
        podium[:] = _NOBODY
        for order in orders:
            least = podium.item(kernel.TOTAL)
            if order.cheapest > least:
                break
            factor = scarce(order.code)
            if order.cheapest * factor > least:
                continue
            expected = self._expected_of(order.code)
            scan(*columns, *order.columns(demand), *expected, *remembered, asked, self._weights, factor, podium)
        lines: list[Line] = podium.tolist()
        return [line for line in lines if line[kernel.ROW] >= 0]

    def _columns_now(self) -> kernel.Columns:
        if self._columns.numbers is not self._fleet.numbers or self._columns.gpu_free is not self._fleet.gpu_free:
            self._columns = self._view()  # the fleet has grown
        return self._columns

    def _expected_of(self, class_code: int) -> kernel.Expected:
        if class_code not in self._expected:
            self._expected[class_code] = expected_of(self._outlook, class_code)
        return self._expected[class_code]

    def _view(self) -> kernel.Columns:
        return kernel.Columns(*(getattr(self._fleet, name) for name in kernel.Columns._fields))


def asked_of(demand: Demand, fleet: Fleet) -> kernel.Integers:
    """Everything that `constraints` asks and the price orders have not answered already: a test compares their names."""
    spec, asked = demand.spec, demand.spec.resources
    milli, network, images = demand.gpu_milli, spec.egress_wanted, spec.images
    wanted = [*images, *(() if spec.workspace is None else (spec.workspace.digest,)), *demand.begins_with]
    only_on = demand.only_on
    found = kernel.Asked(
        units=units_needed(asked) if milli == WHOLE_MILLI else milli,
        gpus=asked.gpus,
        gpu_milli=milli,
        cpus=asked.cpus,
        memory=asked.memory,
        disk=asked.disk,
        isolation=_isolation(isolation_levels_for(spec), bool(pulled_images(spec))),
        egress=egress_bits([network]) if network != "none" else 0,
        proven_gops=spec.placement.min_proven_gops,
        protocol_version=demand.protocol_version,
        reputation=demand.min_reputation_permille,
        unpaid_gpu_ms=min(billed_gpu_ms(demand), MOST) if is_paid_at_the_end(demand) else 0,
        amount_limit=-1 if demand.amount_limit is None else min(demand.amount_limit, MOST),
        vram=asked.min_vram or 0,
        capability=version_code(asked.min_compute_capability),
        owner=fleet.code(f"client {demand.client}") if milli < WHOLE_MILLI else 0,
        most_price=MOST if demand.price_limit is None else min(demand.price_limit, MOST),
        regions=[fleet.code(f"region {name}") for name in demand.regions],
        excluded=_rows(fleet, demand.all_excluded | demand.paused),
        only_on=[-1] if only_on is None else _rows(fleet, only_on),
        wanted=[fleet.codes.get(f"warm {item}", -1) for item in wanted],
    )
    return kernel.told(found)


@lru_cache(maxsize=64)
def _isolation(levels: tuple[str, ...], with_engine: bool) -> int:
    return isolation_bits(levels) << (WITH_ENGINE if with_engine else 0)


def _rows(fleet: Fleet, names: Iterable[str]) -> list[int]:
    return [fleet.row_of[NodeId(name)] for name in names if name in fleet.row_of]


def expected_of(outlook: Outlook, class_code: int) -> kernel.Expected:
    """Of a class that came after the outlook was made nothing is expected: see `packing.outlook`."""
    known = class_code < len(outlook.weights)
    return kernel.Expected(
        shapes=np.stack([outlook.gpus, outlook.size, outlook.cpus, outlook.memory], axis=1),
        copies=outlook.copies,
        reach=outlook.reach,
        weights=outlook.weights[class_code] if known else np.zeros_like(outlook.gpus),
    )
