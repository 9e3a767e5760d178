"""Why a job cannot run (now): each constraint, how many nodes it removes, and what would fit. And why it runs where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from torg_marketplace.matching.constraints import Constraint, constraints, passing
from torg_marketplace.matching.engine import Decision
from torg_marketplace.matching.fleet import Fleet, Rows
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.api import ConstraintFailure
from torg_protocol.ids import NodeId
from torg_protocol.money import format_amount


@dataclass(frozen=True, slots=True)
class Explanation:
    """`fitting`: could ever run it. `live`: of those, alive and accepting. `free`: of those, with room now.
    `fitting_prices` are per GPU-hour, in the order of `fitting`."""

    considered: int
    fitting: tuple[NodeId, ...]
    live: tuple[NodeId, ...]
    free: tuple[NodeId, ...]
    fitting_prices: tuple[int, ...]
    failures: tuple[ConstraintFailure, ...]
    hint: str | None

    @property
    def in_words(self) -> str:
        """One line for somebody whose job waits."""
        if self.considered == 0:
            return "no node is registered here"
        if self.free:
            return f"{len(self.free)} node(s) can take it at any moment"
        if self.live:
            return f"all {len(self.live)} fitting node(s) are busy"
        if self.fitting:
            return f"none of the {len(self.fitting)} fitting node(s) is connected and accepting"
        first = self.failures[0]
        best = f"; best available: {first.best_available}" if first.best_available else ""
        return f"no node satisfies {first.constraint}: asked {first.asked}{best}"


def explain(nodes: Fleet | Iterable[NodeSnapshot], demand: Demand, decimals: int) -> Explanation:
    fleet = nodes if isinstance(nodes, Fleet) else Fleet(nodes)
    rules, everybody = constraints(demand, decimals), fleet.rows()
    fitting = passing(fleet, everybody, [rule for rule in rules if rule.permanent])
    live = passing(fleet, fitting, [rule for rule in rules if rule.name in {"liveness", "accepting"}])
    failures = _failures(fleet, everybody, rules)
    return Explanation(
        considered=everybody.size,
        fitting=_names(fleet, fitting),
        live=_names(fleet, live),
        free=_names(fleet, passing(fleet, live, rules)),
        fitting_prices=tuple(fleet.price[fitting].tolist()),
        failures=failures,
        hint=_hint(failures, has_nodes=everybody.size > 0),
    )


def why(decision: Decision, decimals: int) -> str:
    """One line: the price, what moved the score, and by how much it beat the next."""
    score = decision.score
    factors = (("packing", score.packing), ("scarcity", score.scarcity), ("data to fetch", score.locality))
    parts = [f"{name} +{(factor - 1) * 100:.1f} %" for name, factor in factors if factor > 1]
    if score.reliability < 1:
        parts.append(f"reliability {score.reliability * 100:.1f} %")
    line = f"{format_amount(score.price, decimals)}/h"
    if parts:
        line += f" with {', '.join(parts)}: counts as {format_amount(round(score.total), decimals)}/h"
    if decision.runner_up is None:
        return f"{line}; the only node with room"
    node, other = decision.runner_up
    return f"{line}; next is {node} at {format_amount(round(other.total), decimals)}/h"


def _names(fleet: Fleet, rows: Rows) -> tuple[NodeId, ...]:
    return tuple(fleet.node_id(int(row)) for row in rows)


def _failures(fleet: Fleet, rows: Rows, rules: Sequence[Constraint]) -> tuple[ConstraintFailure, ...]:
    """Each constraint counted by itself. Lasting ones come before those of the moment, then by how much they remove."""
    passes = {rule.name: rule.passes(fleet, rows) for rule in rules}
    found = []
    for rule in rules:
        removed = int(rows.size - np.count_nonzero(passes[rule.name]))
        if not removed:
            continue
        near = np.ones(rows.size, dtype=np.bool_)
        for other in rules:
            if other is not rule and other.permanent:
                near &= passes[other.name]
        failure = ConstraintFailure(
            constraint=rule.name,
            asked=rule.asked(),
            nodes_removed=removed,
            best_available=rule.best(fleet, rows[near] if near.any() else rows),
        )
        found.append((not rule.permanent, -removed, failure))
    return tuple(failure for _, _, failure in sorted(found, key=lambda item: item[:2]))


def _hint(failures: Sequence[ConstraintFailure], *, has_nodes: bool) -> str | None:
    if not has_nodes:
        return "start a node (torg-node start), or ask another marketplace"
    if not failures:
        return None
    first = failures[0]
    match first.constraint:
        case "max_price_per_hour":
            return f"cheapest is {first.best_available}/h, your cap is {first.asked}"
        case "max_unpaid":
            return (
                f"nodes work for at most {first.best_available} unpaid: lower limits.max_duration or set limits.max_cost, "
                "or let the job write checkpoints"
            )
        case "excluded_nodes":
            return "only excluded nodes are left: wait for others to join"
        case "liveness" | "accepting" | "capacity":
            return "wait: a fitting node exists, but not now"
        case _:
            return f"{first.constraint}: best available is {first.best_available}, you ask for {first.asked}"
