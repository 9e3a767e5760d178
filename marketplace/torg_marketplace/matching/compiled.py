"""What the compiled search (`kernel`) is told: fleet, order, demand and outlook as plain arrays and numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from torg_marketplace.matching import kernel
from torg_marketplace.matching.constraints import (
    Constraint,
    billed_gpu_ms,
    is_paid_at_the_end,
    isolation_levels_for,
    pulled_images,
)
from torg_marketplace.matching.fleet import MOST, WITH_ENGINE, Fleet, egress_bits, isolation_bits, version_code
from torg_marketplace.matching.packing import Outlook
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand, units_needed
from torg_protocol.ids import NodeId

# Constraints that `kernel` asks about. A job with any other is searched for over columns.
KNOWN = frozenset(
    {
        "gpu_fraction",
        "min_vram",
        "min_compute_capability",
        "isolation",
        "image",
        "root",
        "network",
        "region",
        "max_unpaid",
        "reputation",
        "min_proven_gops",
        "protocol_version",
        "nodes",
        "excluded_nodes",
        "declined",
    }
)


def knows(rules: Iterable[Constraint]) -> bool:
    return all(rule.name in KNOWN for rule in rules)


class CompiledSearch:
    """What stays between searches: views of the fleet's columns, tables of the outlook, a place for the best."""

    def __init__(self, fleet: Fleet, outlook: Outlook) -> None:
        self.podium = np.array([kernel.NOBODY, kernel.NOBODY])
        self._fleet = fleet
        self._outlook = outlook
        self._columns = self._view()
        self._expected: dict[int, kernel.Expected] = {}

    def columns(self) -> kernel.Columns:
        if self._columns.numbers is not self._fleet.numbers or self._columns.gpu_free is not self._fleet.gpu_free:
            self._columns = self._view()  # the fleet has grown
        return self._columns

    def expected(self, class_code: int) -> kernel.Expected:
        if class_code not in self._expected:
            self._expected[class_code] = expected_of(self._outlook, class_code)
        return self._expected[class_code]

    def _view(self) -> kernel.Columns:
        return kernel.Columns(*(getattr(self._fleet, name) for name in kernel.Columns._fields))


def asked_of(demand: Demand, fleet: Fleet) -> kernel.Asked:
    spec, asked = demand.spec, demand.spec.resources
    wanted = [*spec.images, *(() if spec.workspace is None else (spec.workspace.digest,)), *demand.begins_with]
    excluded = _rows(fleet, demand.all_excluded | demand.paused)
    network = spec.egress_wanted
    gpu_ms = billed_gpu_ms(demand) if is_paid_at_the_end(demand) else 0
    if not asked.gpus:
        units = units_needed(asked)
    else:
        units = asked.gpus if demand.gpu_milli == WHOLE_MILLI else demand.gpu_milli
    return kernel.Asked(
        units=units,
        gpus=asked.gpus,
        gpu_milli=demand.gpu_milli,
        cpus=asked.cpus,
        memory=asked.memory,
        disk=asked.disk,
        isolation=isolation_bits(isolation_levels_for(spec)) << (WITH_ENGINE if pulled_images(spec) else 0),
        egress=egress_bits([network]) if network != "none" else 0,
        proven_gops=spec.placement.min_proven_gops,
        protocol_version=demand.protocol_version,
        reputation=demand.min_reputation_permille,
        unpaid_gpu_ms=min(gpu_ms, MOST),
        amount_limit=-1 if demand.amount_limit is None else min(demand.amount_limit, MOST),
        vram=asked.min_vram or 0,
        capability=version_code(asked.min_compute_capability),
        owner=fleet.code(f"client {demand.client}") if demand.gpu_milli < WHOLE_MILLI else 0,
        most_price=MOST if demand.price_limit is None else min(demand.price_limit, MOST),
        regions=np.array([fleet.code(f"region {name}") for name in demand.regions], dtype=np.int64),
        excluded=excluded,
        only_on=np.array([-1]) if demand.only_on is None else _rows(fleet, demand.only_on),
        wanted=np.array([fleet.codes.get(f"warm {item}", -1) for item in wanted], dtype=np.int64),
    )


def _rows(fleet: Fleet, names: Iterable[str]) -> kernel.Integers:
    return np.array([fleet.row_of[NodeId(name)] for name in names if name in fleet.row_of], dtype=np.int64)


def expected_of(outlook: Outlook, class_code: int) -> kernel.Expected:
    """Of a class that came after the outlook was made nothing is expected: see `packing.outlook`."""
    known = class_code < len(outlook.weights)
    return kernel.Expected(
        shapes=np.stack([outlook.gpus, outlook.size, outlook.cpus, outlook.memory], axis=1),
        copies=outlook.copies,
        reach=outlook.reach,
        weights=outlook.weights[class_code] if known else np.zeros_like(outlook.gpus),
    )
