"""Hard constraints: what a node must have for a job. *Permanent* ones are about what the node is and asks, the others about
this moment: a job waits for a moment, but not for another node to be bought.

Isolation levels: "sandbox" (bubblewrap) is satisfied by any level, "container" (an engine's container) by "container" and
"gvisor", "gvisor" by itself only. A node offers those that it verified by probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torg_marketplace.matching.snapshot import Demand, NodeSnapshot, units_needed
from torg_protocol.money import cost, format_amount
from torg_protocol.offers import GpuInfo
from torg_protocol.quantities import format_cpu_millis
from torg_protocol.states import NodeState

ISOLATION_SATISFIED_BY = {
    "sandbox": frozenset({"sandbox", "container", "gvisor"}),
    "container": frozenset({"container", "gvisor"}),
    "gvisor": frozenset({"gvisor"}),
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """`best` describes the closest to `asked` among some nodes; `asked` is in the words of the job spec."""

    name: str
    asked: str
    passes: Callable[[NodeSnapshot], bool]
    best: Callable[[Sequence[NodeSnapshot]], str]
    permanent: bool = True


def constraints(demand: Demand, decimals: int) -> list[Constraint]:
    """All that apply to this job, the most telling first."""
    return [
        *_accelerator(demand),
        *_host(demand),
        *_terms(demand, decimals),
        *_moment(demand),
    ]


def could_run(node: NodeSnapshot, rules: Sequence[Constraint]) -> bool:
    """Whether the node is fit for the job, now or later."""
    return all(rule.passes(node) for rule in rules if rule.permanent)


def can_run(node: NodeSnapshot, rules: Sequence[Constraint]) -> bool:
    """Whether the job can start on the node now."""
    return all(rule.passes(node) for rule in rules)


def _accelerator(demand: Demand) -> list[Constraint]:
    asked, found = demand.spec.resources, []
    if asked.gpu_class is not None:
        wanted = asked.gpu_class.lower()
        found.append(
            Constraint(
                "gpu_class",
                asked.gpu_class,
                lambda node: node.offer.inventory.gpu_class.lower() == wanted,
                lambda nodes: ", ".join(sorted({node.offer.inventory.gpu_class for node in nodes})),
            )
        )
    if not asked.gpus:
        return found
    found.append(
        Constraint(
            "gpus",
            str(asked.gpus),
            lambda node: node.gpus >= asked.gpus,
            lambda nodes: str(max(node.gpus for node in nodes)),
        )
    )
    if asked.min_vram is not None:
        vram = asked.min_vram
        found.append(
            Constraint(
                "min_vram",
                _gib(vram),
                lambda node: sum(gpu.vram_bytes >= vram for gpu in node.offer.inventory.gpus) >= asked.gpus,
                lambda nodes: _gib(max(gpu.vram_bytes for gpu in _all_gpus(nodes))) if _all_gpus(nodes) else "no GPU",
            )
        )
    if asked.min_compute_capability is not None:
        least = _version(asked.min_compute_capability)
        found.append(
            Constraint(
                "min_compute_capability",
                asked.min_compute_capability,
                lambda node: (
                    sum(_version(gpu.compute_capability) >= least for gpu in node.offer.inventory.gpus) >= asked.gpus
                ),
                lambda nodes: max(
                    (gpu.compute_capability or "0.0" for gpu in _all_gpus(nodes)), key=_version, default="no GPU"
                ),
            )
        )
    return found


def _host(demand: Demand) -> list[Constraint]:
    asked = demand.spec.resources
    good_enough = ISOLATION_SATISFIED_BY[demand.spec.isolation]
    return [
        Constraint(
            "cpus",
            format_cpu_millis(asked.cpus),
            lambda node: node.offer.inventory.cpu_millis >= asked.cpus,
            lambda nodes: format_cpu_millis(max(node.offer.inventory.cpu_millis for node in nodes)),
        ),
        Constraint(
            "memory",
            _gib(asked.memory),
            lambda node: node.offer.inventory.memory_bytes >= asked.memory,
            lambda nodes: _gib(max(node.offer.inventory.memory_bytes for node in nodes)),
        ),
        Constraint(
            "disk",
            _gib(asked.disk),
            lambda node: node.offer.inventory.disk_bytes >= asked.disk,
            lambda nodes: _gib(max(node.offer.inventory.disk_bytes for node in nodes)),
        ),
        Constraint(
            "isolation",
            demand.spec.isolation,
            lambda node: not good_enough.isdisjoint(node.offer.isolation),
            lambda nodes: ", ".join(sorted({level for node in nodes for level in node.offer.isolation})) or "none",
        ),
    ]


def _terms(demand: Demand, decimals: int) -> list[Constraint]:
    found = []
    if demand.price_limit is not None:
        limit = demand.price_limit
        found.append(
            Constraint(
                "max_price_per_hour",
                format_amount(limit, decimals),
                lambda node: node.offer.price_per_gpu_hour <= limit,
                lambda nodes: format_amount(min(node.offer.price_per_gpu_hour for node in nodes), decimals),
            )
        )
    if _is_paid_at_the_end(demand):
        found.append(
            Constraint(
                "max_unpaid",
                "a node that works unpaid until the end",
                lambda node: exposure(node, demand) <= node.offer.max_unpaid,
                lambda nodes: format_amount(max(node.offer.max_unpaid for node in nodes), decimals),
            )
        )
    if demand.all_excluded:
        found.append(
            Constraint(
                "excluded_nodes",
                f"not one of {len(demand.all_excluded)} nodes",
                lambda node: node.node_id not in demand.all_excluded,
                lambda _nodes: "only excluded nodes",
            )
        )
    return found


def _moment(demand: Demand) -> list[Constraint]:
    return [
        Constraint("liveness", "connected", lambda node: node.is_live, lambda _nodes: "not heard of", permanent=False),
        Constraint(
            "accepting",
            "active",
            lambda node: node.state is NodeState.ACTIVE,
            lambda nodes: ", ".join(sorted({node.state for node in nodes})),
            permanent=False,
        ),
        Constraint("capacity", "free", lambda node: not _is_busy(node, demand), lambda _nodes: "busy", permanent=False),
    ]


def has_room(node: NodeSnapshot, demand: Demand) -> bool:
    asked, inventory = demand.spec.resources, node.offer.inventory
    return (
        len(node.free_units(asked)) >= units_needed(asked)
        and inventory.cpu_millis - node.cpu_millis_in_use >= asked.cpus
        and inventory.memory_bytes - node.memory_in_use >= asked.memory
        and inventory.disk_bytes - node.disk_in_use >= asked.disk
    )


def _is_busy(node: NodeSnapshot, demand: Demand) -> bool:
    """What it would have room for if it were empty; what it is too small for is said by other constraints."""
    empty = replace(node, units_in_use=frozenset(), cpu_millis_in_use=0, memory_in_use=0, disk_in_use=0)
    return has_room(empty, demand) and not has_room(node, demand)


def _is_paid_at_the_end(demand: Demand) -> bool:
    """Without checkpoints interval records stay empty until the end; with a metric nothing is paid before the verdict."""
    return demand.spec.verify.policy == "metric" or not demand.spec.checkpoint.enabled


def exposure(node: NodeSnapshot, demand: Demand) -> int:
    """What the node will have earned, unpaid, at the end."""
    spec = demand.spec
    full = cost(node.offer.price_per_gpu_hour, spec.resources.billable_gpus, spec.limits.max_duration)
    return full if demand.amount_limit is None else min(full, demand.amount_limit)


def _all_gpus(nodes: Sequence[NodeSnapshot]) -> list[GpuInfo]:
    return [gpu for node in nodes for gpu in node.offer.inventory.gpus]


def _version(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (text or "0.0").split(".") if part.isdigit())


def _gib(size_bytes: int) -> str:
    """Sizes as people read them: "1.5 GiB", one decimal, rounded down."""
    tenths = size_bytes * 10 >> 30
    return f"{tenths // 10}.{tenths % 10} GiB" if tenths >= 10 else f"{size_bytes >> 20} MiB"
