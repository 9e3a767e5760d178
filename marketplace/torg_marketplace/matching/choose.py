"""The best of the nodes that can run a job now: cheapest, and among similar prices the one that leaves least behind."""

from __future__ import annotations

from collections.abc import Iterable

from torg_marketplace.matching.constraints import can_run, constraints
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot, units_needed

# A node whose whole rest stays empty counts as 20 % dearer than one that is filled exactly.
PACKING_WEIGHT_PERMILLE = 200


def choose(nodes: Iterable[NodeSnapshot], demand: Demand, decimals: int) -> NodeSnapshot | None:
    """None when no node can run it now. Ties are broken by node id, so that equal inputs give equal grants."""
    rules = constraints(demand, decimals)
    candidates = [node for node in nodes if can_run(node, rules)]
    return min(candidates, key=lambda node: score(node, demand), default=None)


def score(node: NodeSnapshot, demand: Demand) -> tuple[int, int, str]:
    """Lower is better: price x (1 + packing), then packing alone (free nodes have prices of 0), then the id."""
    resources = demand.spec.resources
    total = node.gpus if resources.gpus else node.offer.slots
    left = len(node.free_units(resources)) - units_needed(resources)
    left_permille = left * 1000 // total
    packing = 1000 + left_permille * PACKING_WEIGHT_PERMILLE // 1000
    return node.offer.price_per_gpu_hour * packing, left_permille, node.node_id
