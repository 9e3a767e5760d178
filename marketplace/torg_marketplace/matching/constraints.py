"""Hard constraints: what a node must have for a job. *Permanent* ones are about what the node is and asks, the others about
this moment: a job waits for a moment, but not for another node to be bought.

Each is asked of many rows of the fleet at once. The engine's choice, a quote and an explanation use these and no others.

Isolation levels: "sandbox" (bubblewrap) is satisfied by any level, "container" (an engine's container) by "container" and
"gvisor", "gvisor" by itself only. A node offers those that it verified by probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from torg_marketplace.matching import words
from torg_marketplace.matching.fleet import (
    MOST,
    SANDBOX_WITH_ROOT,
    WITH_ENGINE,
    Fleet,
    Ints,
    Mask,
    Rows,
    egress_bits,
    isolation_bits,
    version_code,
)
from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand, NodeSnapshot, units_needed
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import JobSpec
from torg_protocol.money import cost, format_amount
from torg_protocol.quantities import format_cpu_millis
from torg_protocol.tasks import HOST_PYTHON, is_pulled

ISOLATION_SATISFIED_BY = {
    "sandbox": ("sandbox", "container", "gvisor"),
    "container": ("container", "gvisor"),
    "gvisor": ("gvisor",),
}


class Constraint(NamedTuple):
    """`asked` in the words of the job spec; `best` describes the closest to it among some rows (at least one)."""

    name: str
    asked: Callable[[], str]
    passes: Callable[[Fleet, Rows], Mask]
    best: Callable[[Fleet, Rows], str]
    permanent: bool = True
    in_search: bool = False  # every row that a search of the price orders yields and `has_room` passes, passes this too


def constraints(demand: Demand, decimals: int) -> list[Constraint]:
    """All that apply to this job, the most telling first."""
    return [*_accelerator(demand), *_protocol(demand), *_host(demand), *_terms(demand, decimals), *_moment(demand)]


def search_constraints(demand: Demand, decimals: int) -> list[Constraint]:
    """Those that a search has not answered already."""
    return [rule for rule in constraints(demand, decimals) if not rule.in_search]


def passing(fleet: Fleet, rows: Rows, rules: Sequence[Constraint]) -> Rows:
    """Those of `rows` that pass all rules, in their order."""
    for rule in rules:
        if not rows.size:
            break
        rows = rows[rule.passes(fleet, rows)]
    return rows


def could_run(node: NodeSnapshot, rules: Sequence[Constraint]) -> bool:
    """Whether the node is fit for the job, now or later."""
    return can_run(node, [rule for rule in rules if rule.permanent])


def can_run(node: NodeSnapshot, rules: Sequence[Constraint]) -> bool:
    """Whether the job can start on the node now."""
    fleet = Fleet([node])
    return passing(fleet, fleet.rows(), rules).size == 1


def has_room(fleet: Fleet, rows: Rows, demand: Demand) -> Mask:
    """Whether what is free now is enough. The cheapest questions are asked first, and the others only of who is left."""
    asked = demand.spec.resources
    if not asked.gpus:
        room = fleet.slots_free[rows] >= units_needed(asked)
    elif demand.gpu_milli == WHOLE_MILLI:
        room = fleet.gpus_whole[rows] >= asked.gpus
    else:
        room = fleet.gpu_most_free[rows] >= demand.gpu_milli
    left = np.flatnonzero(room)
    some = rows[left]
    enough = (
        (fleet.cpu_free[some] >= asked.cpus)
        & (fleet.memory_free[some] >= asked.memory)
        & (fleet.disk_free[some] >= asked.disk)
    )
    if demand.gpu_milli < WHOLE_MILLI:
        owner = fleet.gpu_owner[some]
        mine = (owner == 0) | (owner == fleet.code(f"client {demand.client}"))
        enough &= ((fleet.gpu_free[some] >= demand.gpu_milli) & mine).any(axis=1)
    room[left] = enough
    return room


def _accelerator(demand: Demand) -> Iterator[Constraint]:
    asked = demand.spec.resources
    if asked.gpu_class is not None:
        wanted = asked.gpu_class
        yield Constraint(
            "gpu_class",
            lambda: wanted,
            lambda fleet, rows: _of_class(fleet, rows, demand),
            words.classes,
            in_search=True,
        )
    if not asked.gpus:
        return
    last = asked.gpus - 1  # columns are sorted, the best GPU first
    yield Constraint(
        "gpus",
        lambda: str(asked.gpus),
        lambda fleet, rows: fleet.gpus_total[rows] >= asked.gpus,
        lambda fleet, rows: str(fleet.gpus_total[rows].max()),
        in_search=True,
    )
    if demand.gpu_milli < WHOLE_MILLI:
        yield Constraint(
            "gpu_fraction",
            lambda: format_cpu_millis(demand.gpu_milli),
            lambda fleet, rows: fleet.least_gpu_milli[rows] <= demand.gpu_milli,
            words.smallest_share,
        )
    if asked.min_vram is not None:
        vram = asked.min_vram
        yield Constraint(
            "min_vram",
            lambda: words.gib(vram),
            lambda fleet, rows: _column_at_least(fleet.vram, rows, last, vram),
            words.most_vram,
        )
    if asked.min_compute_capability is not None:
        least = asked.min_compute_capability
        yield Constraint(
            "min_compute_capability",
            lambda: least,
            lambda fleet, rows: _column_at_least(fleet.capability, rows, last, version_code(least)),
            words.best_capability,
        )


def _of_class(fleet: Fleet, rows: Rows, demand: Demand) -> Mask:
    return _one_of(fleet.gpu_class[rows], [fleet.code(f"class {name}") for name in demand.gpu_classes])


def _one_of(values: Ints, few: Sequence[int]) -> Mask:
    mask: Mask = np.asarray(values == few[0])
    for one in few[1:]:
        mask |= values == one
    return mask


def _column_at_least(
    columns: np.ndarray[tuple[int, ...], np.dtype[np.int64]], rows: Rows, column: int, least: int
) -> Mask:
    if column >= columns.shape[1]:
        return np.zeros(rows.size, dtype=np.bool_)
    return np.asarray(columns[rows, column] >= least)


def _protocol(demand: Demand) -> Iterator[Constraint]:
    if demand.features:
        least = demand.protocol_version
        yield Constraint(
            "protocol_version",
            lambda: f"{least} ({words.features(demand)})",
            lambda fleet, rows: fleet.protocol_version[rows] >= least,
            lambda fleet, rows: str(int(fleet.protocol_version[rows].max())),
        )


def _host(demand: Demand) -> Iterator[Constraint]:
    asked = demand.spec.resources
    yield Constraint(
        "cpus",
        lambda: format_cpu_millis(asked.cpus),
        lambda fleet, rows: fleet.cpu_total[rows] >= asked.cpus,
        lambda fleet, rows: format_cpu_millis(int(fleet.cpu_total[rows].max())),
        in_search=True,
    )
    yield Constraint(
        "memory",
        lambda: words.gib(asked.memory),
        lambda fleet, rows: fleet.memory_total[rows] >= asked.memory,
        lambda fleet, rows: words.gib(int(fleet.memory_total[rows].max())),
        in_search=True,
    )
    yield Constraint(
        "disk",
        lambda: words.gib(asked.disk),
        lambda fleet, rows: fleet.disk_total[rows] >= asked.disk,
        lambda fleet, rows: words.gib(int(fleet.disk_total[rows].max())),
        in_search=True,
    )
    yield Constraint(
        "isolation",
        lambda: demand.spec.isolation,
        lambda fleet, rows: _isolates(fleet, rows, demand.spec.isolation),
        words.isolation_levels,
    )
    if demand.spec.root:
        levels = isolation_bits(isolation_levels_for(demand.spec))
        yield Constraint(
            "root",
            lambda: f"root{_with(demand.spec)}",
            lambda fleet, rows: np.asarray(fleet.isolation[rows] & levels != 0),
            lambda fleet, rows: (
                "without" if (fleet.isolation[rows] & isolation_bits([SANDBOX_WITH_ROOT])).any() else "none"
            ),
        )
    if pulled := pulled_images(demand.spec):
        yield Constraint(
            "image",
            lambda: ", ".join(pulled),
            lambda fleet, rows: fleet.isolation[rows] >> WITH_ENGINE != 0,
            lambda fleet, rows: "pulled" if (fleet.isolation[rows] >> WITH_ENGINE).any() else HOST_PYTHON,
        )
    if (network := demand.spec.egress_wanted) != "none":
        yield Constraint(
            "network",
            lambda: network,
            lambda fleet, rows: np.asarray(fleet.egress[rows] & egress_bits([network]) != 0),
            words.networks,
        )
    if demand.regions:
        yield Constraint(
            "region",
            lambda: ", ".join(sorted(demand.regions)),
            lambda fleet, rows: _one_of(fleet.region[rows], [fleet.code(f"region {name}") for name in demand.regions]),
            words.regions,
        )


def _with(spec: JobSpec) -> str:
    """What no container has beside a root of its own."""
    beside = [f"isolation {spec.isolation}"] if spec.isolation != "sandbox" else []
    beside += ["GPUs"] if spec.resources.gpus else []
    return f" with {' and '.join(beside)}" if beside else ""


def pulled_images(spec: JobSpec) -> tuple[str, ...]:
    """Those that come from a registry: only nodes with a container engine can have them."""
    return tuple(image for image in spec.images if is_pulled(image))


def isolation_levels_for(spec: JobSpec) -> tuple[str, ...]:
    """Any of which will do."""
    if not spec.root:
        return ISOLATION_SATISFIED_BY[spec.isolation]
    return (SANDBOX_WITH_ROOT,) if spec.isolation == "sandbox" and not spec.resources.gpus else ()


def _isolates(fleet: Fleet, rows: Rows, level: str) -> Mask:
    return np.asarray(fleet.isolation[rows] & isolation_bits(ISOLATION_SATISFIED_BY[level]) != 0)


def _terms(demand: Demand, decimals: int) -> Iterator[Constraint]:
    if demand.price_limit is not None:
        limit = demand.price_limit
        yield Constraint(
            "max_price_per_hour",
            lambda: format_amount(limit, decimals),
            lambda fleet, rows: fleet.price[rows] <= min(limit, MOST),
            lambda fleet, rows: format_amount(int(fleet.price[rows].min()), decimals),
            in_search=True,
        )
    if is_paid_at_the_end(demand):
        yield Constraint(
            "max_unpaid",
            lambda: "a node that works unpaid until the end",
            lambda fleet, rows: _can_wait_for_pay(fleet, rows, demand),
            lambda fleet, rows: format_amount(int(fleet.max_unpaid[rows].max()), decimals),
        )
    if demand.min_reputation_permille:
        least = demand.min_reputation_permille
        yield Constraint(
            "reputation",
            lambda: words.permille(least),
            lambda fleet, rows: fleet.reputation[rows] >= least,
            lambda fleet, rows: words.permille(int(fleet.reputation[rows].max())),
        )
    if demand.spec.placement.min_proven_gops:
        proven = demand.spec.placement.min_proven_gops
        yield Constraint(
            "min_proven_gops",
            lambda: str(proven),
            lambda fleet, rows: fleet.proven_gops[rows] >= proven,
            lambda fleet, rows: str(int(fleet.proven_gops[rows].max())),
        )
    if demand.only_on is not None:
        yield Constraint(
            "nodes",
            lambda: "one of those named, or that its secrets are sealed to",
            lambda fleet, rows: _one_of_nodes(fleet, rows, demand.only_on or ()),
            lambda _fleet, _rows: "none of them",
        )
    if demand.all_excluded:
        yield Constraint(
            "excluded_nodes",
            lambda: f"not one of {len(demand.all_excluded)} nodes",
            lambda fleet, rows: _not_excluded(fleet, rows, demand),
            lambda _fleet, _rows: "only excluded nodes",
        )


def _not_excluded(fleet: Fleet, rows: Rows, demand: Demand) -> Mask:
    return ~_one_of_nodes(fleet, rows, demand.all_excluded)


def _one_of_nodes(fleet: Fleet, rows: Rows, names: Iterable[str]) -> Mask:
    known = [fleet.row_of[NodeId(name)] for name in names if name in fleet.row_of]
    return _one_of(rows, known) if known else np.zeros(rows.size, dtype=np.bool_)


def _moment(demand: Demand) -> Iterator[Constraint]:
    yield Constraint(
        "liveness",
        lambda: "connected",
        lambda fleet, rows: fleet.live[rows],
        lambda *_: "not heard of",
        permanent=False,
        in_search=True,
    )
    yield Constraint(
        "accepting",
        lambda: "active",
        lambda fleet, rows: fleet.accepting[rows],
        lambda *_: "not active",
        permanent=False,
        in_search=True,
    )
    if demand.paused:
        yield Constraint(
            "declined",
            lambda: "not lately",
            lambda fleet, rows: ~_one_of_nodes(fleet, rows, demand.paused),
            lambda *_: "declined it lately",
            permanent=False,
        )
    yield Constraint(
        "capacity",
        lambda: "free",
        lambda fleet, rows: ~_is_busy(fleet, rows, demand),
        lambda *_: "busy",
        permanent=False,
        in_search=True,
    )


def _is_busy(fleet: Fleet, rows: Rows, demand: Demand) -> Mask:
    """What it would have room for if it were empty; what it is too small for is said by other constraints."""
    asked = demand.spec.resources
    room_when_empty = (
        (fleet.cpu_total[rows] >= asked.cpus)
        & (fleet.memory_total[rows] >= asked.memory)
        & (fleet.disk_total[rows] >= asked.disk)
    )
    if asked.gpus:
        room_when_empty &= fleet.gpus_total[rows] >= asked.gpus
    return np.asarray(room_when_empty & ~has_room(fleet, rows, demand))


def is_paid_at_the_end(demand: Demand) -> bool:
    """Without checkpoints interval records stay empty until the end; with verification nothing is paid before the verdict."""
    return demand.spec.verify.policy != "none" or not demand.spec.checkpoint.enabled


def _can_wait_for_pay(fleet: Fleet, rows: Rows, demand: Demand) -> Mask:
    """Whether what the node will have earned at the end, unpaid, is within its `max_unpaid`."""
    gpu_ms = min(billed_gpu_ms(demand), MOST)
    passes = fleet.unpaid_gpu_ms[rows] >= gpu_ms
    if demand.amount_limit is not None:
        passes |= fleet.max_unpaid[rows] >= min(demand.amount_limit, MOST)
    return np.asarray(passes)


def billed_gpu_ms(demand: Demand) -> int:
    """Whole GPUs' time that it is billed at the most, rounded up."""
    return -(-demand.spec.resources.billable_gpus * demand.gpu_milli * demand.max_duration_ms // WHOLE_MILLI)


def exposure(node: NodeSnapshot, demand: Demand) -> int:
    """What the node will have earned, unpaid, at the end. Base units."""
    asked = demand.spec.resources
    full = cost(asked.price_of(node.offer.price_per_gpu_hour), asked.billable_gpus, demand.max_duration_ms)
    return full if demand.amount_limit is None else min(full, demand.amount_limit)
