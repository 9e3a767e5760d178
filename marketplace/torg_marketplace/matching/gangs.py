"""Gangs: so many nodes at once, or none. While some are missing it holds none; `reservation` says which are kept for the one that is first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from torg_marketplace.matching.constraints import constraints, has_room, passing
from torg_marketplace.matching.engine import Decision, Engine
from torg_marketplace.matching.fleet import Fleet, Mask, Rows
from torg_marketplace.matching.snapshot import Demand
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import Gang

_REGIONS_TRIED = 8  # of those with enough nodes; the ones with most of them free


def decide_all(engine: Engine, demand: Demand) -> tuple[Decision, ...]:
    """A node for each member, by rank, best first; empty when they are not all there now. Changes nothing."""
    gang = demand.spec.gang
    if gang is None:
        return () if (only := engine.decide(demand)) is None else (only,)
    if not gang.same_region:
        return _members(engine, demand, gang.size)
    found = [
        _members(engine, replace(demand, regions=frozenset({name})), gang.size) for name in _regions(engine, demand)
    ]
    complete = [members for members in found if members]
    return min(complete, key=lambda members: sum(each.score.total for each in members), default=())


def nodes_free_now(engine: Engine, demand: Demand) -> tuple[NodeId, ...]:
    """All that could take a member now, also when they are too few. The cheapest first."""
    fleet = engine.fleet
    rows = fleet.rows()
    rows = passing(fleet, rows[has_room(fleet, rows, demand)], constraints(demand, engine.decimals))
    return tuple(fleet.node_id(int(row)) for row in rows[np.argsort(fleet.price[rows], kind="stable")])


def enough(fleet: Fleet, rows: Rows, mask: Mask, gang: Gang | None) -> Mask:
    """Of the rows in `mask`, those with so many others beside them that a gang fits: all or none, or region by region."""
    if gang is None:
        return mask
    if not gang.same_region:
        return mask if np.count_nonzero(mask) >= gang.size else np.zeros_like(mask)
    regions, counts = np.unique(fleet.region[rows[mask]], return_counts=True)
    return np.asarray(mask & np.isin(fleet.region[rows], regions[counts >= gang.size]))


def most_together(fleet: Fleet, rows: Rows, gang: Gang) -> int:
    """The largest gang that these rows could hold."""
    if not gang.same_region:
        return int(rows.size)
    return int(np.unique(fleet.region[rows], return_counts=True)[1].max(initial=0))


def cheapest_first(fleet: Fleet, rows: Rows) -> Sequence[int]:
    """Their prices; read out as ints one by one, where they are looked at."""
    return np.sort(fleet.price[rows]).data


def group_prices(fleet: Fleet, rows: Rows, gang: Gang | None) -> Sequence[int]:
    """Prices that a gang of these rows pays, cheapest first: of all of them, or of the region where its members are cheapest."""
    if gang is None or not gang.same_region or not rows.size:
        return cheapest_first(fleet, rows)
    by_region = [cheapest_first(fleet, rows[fleet.region[rows] == code]) for code in np.unique(fleet.region[rows])]
    large = [prices for prices in by_region if len(prices) >= gang.size]
    return min(large, key=lambda prices: prices[gang.size - 1], default=())


def _members(engine: Engine, demand: Demand, size: int) -> tuple[Decision, ...]:
    chosen: list[Decision] = []
    while len(chosen) < size:
        taken = demand.excluded | {each.node_id for each in chosen}
        best = engine.decide(replace(demand, excluded=frozenset(taken)))
        if best is None:
            return ()
        chosen.append(best)
    return tuple(chosen)


def _regions(engine: Engine, demand: Demand) -> Iterator[str]:
    fleet, rows = engine.fleet, engine.fleet.rows()
    names = {code: word.removeprefix("region ") for word, code in fleet.codes.items() if word.startswith("region ")}
    codes, counts = np.unique(fleet.region[rows[fleet.live[rows] & fleet.accepting[rows]]], return_counts=True)
    size = demand.spec.gang.size if demand.spec.gang is not None else 1
    most_first = sorted(zip(counts.tolist(), codes.tolist(), strict=True), reverse=True)
    wanted = [names[code] for count, code in most_first if count >= size]
    yield from [name for name in wanted if not demand.regions or name in demand.regions][:_REGIONS_TRIED]
