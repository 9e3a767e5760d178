"""Why a job cannot run (now): each constraint, how many nodes it removes, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torg_marketplace.matching.constraints import Constraint, can_run, constraints, could_run
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.api import ConstraintFailure
from torg_protocol.states import NodeState


@dataclass(frozen=True, slots=True)
class Explanation:
    """`fitting`: could ever run it. `live`: of those, alive and accepting. `free`: of those, with room now."""

    considered: int
    fitting: tuple[NodeSnapshot, ...]
    live: tuple[NodeSnapshot, ...]
    free: tuple[NodeSnapshot, ...]
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


def explain(nodes: Sequence[NodeSnapshot], demand: Demand, decimals: int) -> Explanation:
    rules = constraints(demand, decimals)
    fitting = tuple(node for node in nodes if could_run(node, rules))
    live = tuple(node for node in fitting if node.is_live and node.state is NodeState.ACTIVE)
    failures = _failures(nodes, rules)
    return Explanation(
        considered=len(nodes),
        fitting=fitting,
        live=live,
        free=tuple(node for node in live if can_run(node, rules)),
        failures=failures,
        hint=_hint(failures, has_nodes=bool(nodes)),
    )


def _failures(nodes: Sequence[NodeSnapshot], rules: Sequence[Constraint]) -> tuple[ConstraintFailure, ...]:
    """Each constraint counted by itself. Lasting ones come before those of the moment, then by how much they remove."""
    found = []
    for rule in rules:
        removed = [node for node in nodes if not rule.passes(node)]
        if not removed:
            continue
        others = [other for other in rules if other is not rule and other.permanent]
        near = [node for node in nodes if all(other.passes(node) for other in others)]
        failure = ConstraintFailure(
            constraint=rule.name, asked=rule.asked, nodes_removed=len(removed), best_available=rule.best(near or nodes)
        )
        found.append((not rule.permanent, -len(removed), failure))
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
