"""Why a job cannot run (now): each constraint, how many nodes it removes, and what would fit. And why it runs where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torg_marketplace.matching import words
from torg_marketplace.matching.constraints import Constraint, constraints, passing
from torg_marketplace.matching.engine import Decision
from torg_marketplace.matching.fleet import Fleet, Mask, Rows
from torg_marketplace.matching.gangs import cheapest_first, enough, most_together
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.api import ConstraintFailure
from torg_protocol.jobspec import Gang
from torg_protocol.money import format_amount
from torg_protocol.tasks import HOST_PYTHON


@dataclass(frozen=True, slots=True)
class Explanation:
    """Rows of nodes: `fitting` could ever run it; `live`: of those, alive and accepting; `free`: of those, with room now; `paused`: of
    the live ones, not asked now because they declined it lately."""

    considered: int
    fitting: Rows
    live: Rows
    free: Rows
    paused: Rows
    at_once: int  # nodes of a gang; fewer than these are as good as none
    free_alone: int  # nodes that are free, also when they are too few
    fitting_prices: Sequence[int]  # per GPU-hour, cheapest first
    failures: tuple[ConstraintFailure, ...]
    hint: str | None
    spot: bool = False

    @property
    def in_words(self) -> str:
        """One line for somebody whose job waits."""
        if self.considered == 0:
            return "no node here takes spot jobs" if self.spot else "no node is registered here"
        if self.free.size:
            return f"{self.free.size} node(s) can take it at any moment"
        if self.live.size and self.at_once > 1:
            return f"{self.free_alone} of the {self.at_once} nodes that it needs at once are free"
        if self.live.size:
            paused = f", or declined it lately ({self.paused.size})" if self.paused.size else ""
            return f"all {self.live.size} fitting node(s) are busy{paused}"
        if self.fitting.size:
            return f"none of the {self.fitting.size} fitting node(s) is connected and accepting"
        first = self.failures[0]
        if first.constraint == "protocol_version" and self.hint is not None:
            return self.hint
        best = f"; best available: {first.best_available}" if first.best_available else ""
        return f"no node satisfies {first.constraint}: asked {first.asked}{best}"


def fitting(fleet: Fleet, demand: Demand, decimals: int) -> Rows:
    """`Explanation.fitting`, without a word on the others."""
    rows = passing(fleet, fleet.rows(), [rule for rule in constraints(demand, decimals) if rule.permanent])
    return rows[enough(fleet, rows, np.ones(rows.size, dtype=np.bool_), demand.spec.gang)]


def explain(nodes: Fleet | Iterable[NodeSnapshot], demand: Demand, decimals: int) -> Explanation:
    """Of a spot job, `nodes` are those with a spot price, at that price."""
    fleet = nodes if isinstance(nodes, Fleet) else Fleet(nodes)
    rules, everybody = constraints(demand, decimals), fleet.rows()
    passes = {rule.name: rule.passes(fleet, everybody) for rule in rules}
    gang = demand.spec.gang
    alone = _all(passes, [rule for rule in rules if rule.permanent], everybody.size)
    fit = enough(fleet, everybody, alone, gang)
    live = fit & _all(passes, [rule for rule in rules if rule.name in {"liveness", "accepting"}], everybody.size)
    live = enough(fleet, everybody, live, gang)
    free = live & _all(passes, rules, everybody.size)
    failures = _failures(fleet, everybody, rules, passes)
    if gang is not None and alone.any() and not fit.any():
        failures = (_too_few(fleet, everybody[alone], gang), *failures)
    return Explanation(
        considered=everybody.size,
        fitting=everybody[fit],
        live=everybody[live],
        free=everybody[enough(fleet, everybody, free, gang)],
        paused=everybody[live & ~passes["declined"]] if "declined" in passes else everybody[:0],
        at_once=demand.spec.nodes_at_once,
        free_alone=int(np.count_nonzero(free)),
        fitting_prices=cheapest_first(fleet, everybody[fit]),
        failures=failures,
        hint=_no_node_hint(demand) if not everybody.size else _hint(failures, demand),
        spot=demand.spec.spot,
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
        return f"{line}; no other node with room comes near"
    node, other = decision.runner_up
    return f"{line}; next is {node} at {format_amount(round(other.total), decimals)}/h"


def _too_few(fleet: Fleet, rows: Rows, gang: Gang) -> ConstraintFailure:
    where = " in one region" if gang.same_region else ""
    there = most_together(fleet, rows, gang)
    return ConstraintFailure(
        constraint="gang",
        asked=f"{gang.size} nodes at once{where}",
        nodes_removed=int(rows.size),
        best_available=f"{there}{where}",
    )


def _all(passes: Mapping[str, Mask], rules: Sequence[Constraint], size: int) -> Mask:
    mask = np.ones(size, dtype=np.bool_)
    for rule in rules:
        mask &= passes[rule.name]
    return mask


def _failures(
    fleet: Fleet, rows: Rows, rules: Sequence[Constraint], passes: Mapping[str, Mask]
) -> tuple[ConstraintFailure, ...]:
    """Each constraint counted by itself. Lasting ones come before those of the moment, then by how much they remove."""
    found = []
    missed = np.zeros(rows.size, dtype=np.int16)  # lasting constraints, by node
    for rule in rules:
        if rule.permanent:
            missed += ~passes[rule.name]
    for rule in rules:
        fails = ~passes[rule.name]
        removed = int(np.count_nonzero(fails))
        if not removed:
            continue
        near = missed == fails if rule.permanent else missed == 0  # passes all others
        gained = rows[near & fails] if rule.permanent else rows[:0]
        failure = ConstraintFailure(
            constraint=rule.name,
            asked=rule.asked(),
            nodes_removed=removed,
            best_available=rule.best(fleet, rows[near] if near.any() else rows),
            nodes_without_it=gained.size,
            cheapest_without_it=int(fleet.price[gained].min()) if gained.size else None,
        )
        found.append((not rule.permanent, -removed, failure))
    return tuple(failure for _, _, failure in sorted(found, key=lambda item: item[:2]))


def _no_node_hint(demand: Demand) -> str:
    if demand.spec.spot:
        return "leave spot out: nodes with a spot price are marked in torg offers"
    return "start a node (torg-node start), or ask another marketplace"


def _hint(failures: Sequence[ConstraintFailure], demand: Demand) -> str | None:
    if not failures:
        return None
    first = failures[0]
    match first.constraint:
        case "protocol_version":
            nodes = "1 node speaks" if first.nodes_removed == 1 else f"{first.nodes_removed} nodes speak"
            return (
                f"{nodes} protocol {demand.protocol_version - 1}, which has no {words.features(demand)}: "
                f"{'its owner' if first.nodes_removed == 1 else 'their owners'} must update"
            )
        case "max_price_per_hour":
            return f"cheapest is {first.best_available}/h, your cap is {first.asked}"
        case "max_unpaid":
            return (
                f"nodes work for at most {first.best_available} unpaid: lower limits.max_duration or set limits.max_cost, "
                "or let the job write checkpoints"
            )
        case "nodes":
            return "no node that it may run on can take it: name others, or submit again (secrets are sealed to nodes of that moment)"
        case "excluded_nodes":
            return "only excluded nodes are left: wait for others to join"
        case "image":
            return (
                f"no node here has a container engine, and so none can pull {first.asked}: run the node's own Python (image: {HOST_PYTHON}), "
                "or bring the image along as an archive (image: file:image.tar)"
            )
        case "gang":
            return f"ask for at most {first.best_available} (gang.size), or wait for others to join"
        case "liveness" | "accepting" | "capacity" | "declined":
            return "wait: a fitting node exists, but not now"
        case _:
            return f"{first.constraint}: best available is {first.best_available}, you ask for {first.asked}"
