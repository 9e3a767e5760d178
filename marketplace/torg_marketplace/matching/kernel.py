"""The search of one price order as a loop over rows, for large fleets: what `engine` does with columns, compiled.

Written in the part of Python that numba compiles to machine code. Both ways decide alike, to the last bit of a score: a test
compares them over random markets. Uncompiled it gives the same answers and is slow. numba comes with the extra `fast`; nothing
waits for it: until `compile_now` has been called (off the event loop; seconds, once per machine), searches go over columns.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WHOLE = 1000  # milli of a GPU
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[Any]


# Columns of `Fleet.numbers`
PRICE, TIE, CPU_FREE, MEMORY_FREE, DISK_FREE, ISOLATION, REGION, REPUTATION, UNPAID_GPU_MS, MAX_UNPAID = range(10)
EGRESS, PROVEN_GOPS, LEAST_GPU_MILLI, PROTOCOL_VERSION = 10, 11, 12, 13


class Columns(NamedTuple):
    """Of the fleet, by row."""

    numbers: Integers
    vram: Integers
    capability: Integers
    gpu_free: Integers
    gpu_owner: Integers
    warm: Integers


class Order(NamedTuple):
    """Of one class, cheapest first: rows, and how many of the units in question each has free."""

    rows: Integers
    units_free: Integers


class Asked(NamedTuple):
    """Limits that do not apply are 0 (or below, of amounts)."""

    units: int
    gpus: int
    gpu_milli: int
    cpus: int
    memory: int
    disk: int
    isolation: int  # bits, any of which will do
    egress: int  # likewise; 0: none is needed
    proven_gops: int
    protocol_version: int
    reputation: int
    unpaid_gpu_ms: int
    amount_limit: int
    vram: int
    capability: int
    owner: int  # code of the client, to whom shares belong
    most_price: int
    regions: Integers  # codes; empty: any
    excluded: Integers  # rows
    only_on: Integers  # rows; with -1 alone, any
    wanted: Integers  # codes of what should be on disk; -1 for what no node has


class Expected(NamedTuple):
    """`packing.Outlook`, with the weights of the class at hand."""

    shapes: Floats  # [shape, (GPUs, GPU-milli, CPU, memory)]
    copies: Floats
    reach: Floats
    weights: Floats


class Remembered(NamedTuple):
    """Of jobs of this shape: what `Packing` remembers, good while the row's version is the same. Not used for shares."""

    versions: Integers  # of the fleet's rows
    known: Integers  # the version for which consumption was worked out
    consumption: Floats


class Weights(NamedTuple):
    packing: float
    locality: float
    reach_share: float
    scarce: float  # the factor of this class
    most_candidates: int


# The podium: the best and the next so far over all orders, one line each. Row -1 and an infinite total: nobody yet.
ROW, TOTAL, FACTOR, PACKING, LOCALITY, SCARCITY = range(6)
NOBODY = (-1.0, np.inf, np.inf, 1.0, 1.0, 1.0)


def _passes(fleet: Columns, row: int, asked: Asked) -> bool:
    if (
        fleet.numbers[row, CPU_FREE] < asked.cpus
        or fleet.numbers[row, MEMORY_FREE] < asked.memory
        or fleet.numbers[row, DISK_FREE] < asked.disk
    ):
        return False
    if fleet.numbers[row, ISOLATION] & asked.isolation == 0 or fleet.numbers[row, REPUTATION] < asked.reputation:
        return False
    if (
        fleet.numbers[row, PROVEN_GOPS] < asked.proven_gops
        or fleet.numbers[row, PROTOCOL_VERSION] < asked.protocol_version
    ):
        return False
    if (
        fleet.numbers[row, UNPAID_GPU_MS] < asked.unpaid_gpu_ms
        and not 0 <= asked.amount_limit <= fleet.numbers[row, MAX_UNPAID]
    ):
        return False
    if asked.egress != 0 and fleet.numbers[row, EGRESS] & asked.egress == 0:
        return False
    if asked.gpus > 0 and not _has_gpus(fleet, row, asked):
        return False
    if asked.regions.size > 0 and not _is_among(fleet.numbers[row, REGION], asked.regions):
        return False
    if not _is_among(-1, asked.only_on) and not _is_among(row, asked.only_on):
        return False
    return not _is_among(row, asked.excluded)


def _is_among(value: int, few: Integers) -> bool:
    found = False
    for one in few:
        found = found or value == one
    return found


def _has_gpus(fleet: Columns, row: int, asked: Asked) -> bool:
    """The free ones are counted already: whether they are good enough, and whether there is one to share."""
    last = asked.gpus - 1  # columns are sorted, the best GPU first
    if (
        asked.gpu_milli < fleet.numbers[row, LEAST_GPU_MILLI]
        or last >= fleet.vram.shape[1]
        or fleet.vram[row, last] < asked.vram
        or fleet.capability[row, last] < asked.capability
    ):
        return False
    some = asked.gpu_milli == WHOLE
    for gpu in range(fleet.gpu_free.shape[1]):
        some = some or _may_share(fleet, row, gpu, asked)
    return some


def _may_share(fleet: Columns, row: int, gpu: int, asked: Asked) -> bool:
    owner = fleet.gpu_owner[row, gpu]
    return bool(fleet.gpu_free[row, gpu] >= asked.gpu_milli and (owner in (0, asked.owner)))


def _locality(fleet: Columns, row: int, asked: Asked, weight: float) -> float:
    missing = 1.0
    for code in asked.wanted:
        for place in range(fleet.warm.shape[1]):
            if fleet.warm[row, place] == code:
                missing -= 1 / asked.wanted.size
                break
    return 1 + weight * missing


def _usable(expected: Expected, share: float, copies: Floats, reach: Floats, cpus: float, memory: float) -> float:
    """As `Packing._usable`. Added up in eight lanes, the way numpy does, so that sums are equal to the last bit."""
    shapes = expected.weights.size
    worth = np.zeros(shapes)
    for k in range(shapes):
        gpus, size, cpus_each, memory_each = expected.shapes[k]
        limit = min(cpus / cpus_each, memory / memory_each)
        jobs = np.floor(copies[k] / gpus)
        if limit >= 1 and jobs >= 1:
            worth[k] = (min(jobs, limit) * size * (1 - share) + share * reach[k]) * expected.weights[k]
    whole = shapes - shapes % 8
    total = 0.0
    if whole > 0:
        lanes = worth[:8].copy()
        for start in range(8, whole, 8):
            for lane in range(8):
                lanes[lane] += worth[start + lane]
        total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
    for k in range(whole, shapes):
        total += worth[k]
    return total


def _recall(fleet: Columns, row: int, asked: Asked, expected: Expected, share: float, remembered: Remembered) -> float:
    """Consumption, worked out once per version of a row."""
    if asked.gpu_milli < WHOLE:
        return _consumption(fleet, row, asked, expected, share)
    if remembered.known[row] != remembered.versions[row]:
        remembered.consumption[row] = _consumption(fleet, row, asked, expected, share)
        remembered.known[row] = remembered.versions[row]
    return float(remembered.consumption[row])


def _consumption(fleet: Columns, row: int, asked: Asked, expected: Expected, share: float) -> float:
    """As `Packing.consumption` of one row."""
    shapes = expected.weights.size
    copies, reach, whole = np.zeros(shapes), np.zeros(shapes), 0
    for gpu in range(fleet.gpu_free.shape[1]):
        free = fleet.gpu_free[row, gpu]
        whole += free == WHOLE
        if 0 < free < WHOLE:
            copies += expected.copies[free]
            reach += expected.reach[free]
    if whole > 0:
        copies += whole * expected.copies[WHOLE]
        reach += whole * expected.reach[WHOLE]
    cpus, memory = fleet.numbers[row, CPU_FREE], fleet.numbers[row, MEMORY_FREE]
    before = _usable(expected, share, copies, reach, cpus, memory)
    cpus, memory = cpus - asked.cpus, memory - asked.memory
    if asked.gpus > 0 and asked.gpu_milli < WHOLE:
        after = _best_share(fleet, row, asked, expected, share, copies, reach)
        return max((before - after) / asked.gpu_milli, 0.0)
    for k in range(shapes):
        copies[k] -= asked.gpus * expected.copies[WHOLE, k]
        reach[k] -= asked.gpus * expected.reach[WHOLE, k]
    after = _usable(expected, share, copies, reach, cpus, memory)
    return max((before - after) / (asked.gpus * WHOLE if asked.gpus > 0 else WHOLE), 0.0)


def _best_share(
    fleet: Columns, row: int, asked: Asked, expected: Expected, share: float, copies: Floats, reach: Floats
) -> float:
    """Usable capacity after the best choice of a GPU: of equals, to six digits, the fullest."""
    best, best_rounded, best_was = 0.0, -1.0, 0
    cpus, memory = fleet.numbers[row, CPU_FREE] - asked.cpus, fleet.numbers[row, MEMORY_FREE] - asked.memory
    for gpu in range(fleet.gpu_free.shape[1]):
        if not _may_share(fleet, row, gpu, asked):
            continue
        was = fleet.gpu_free[row, gpu]
        now = was - asked.gpu_milli
        left, far = (
            copies - expected.copies[was] + expected.copies[now],
            reach - expected.reach[was] + expected.reach[now],
        )
        after = _usable(expected, share, left, far, cpus, memory)
        rounded = np.rint(after * 1e6) / 1e6
        if rounded > best_rounded or (rounded == best_rounded and was < best_was):
            best, best_rounded, best_was = after, rounded, was
    return best


def _place(podium: Floats, fleet: Columns, row: int, total: float, factor: float) -> int:
    """Which place a row takes; 2 for none. Of equal totals the smaller factor is better, then the smaller hash of the id."""
    for at in range(2):
        if total < podium[at, TOTAL]:
            return at
        if total == podium[at, TOTAL] and podium[at, ROW] >= 0:
            other = int(podium[at, ROW])
            if factor < podium[at, FACTOR]:
                return at
            if factor == podium[at, FACTOR] and fleet.numbers[row, TIE] < fleet.numbers[other, TIE]:
                return at
    return 2


def _scan(
    fleet: Columns,
    order: Order,
    asked: Asked,
    expected: Expected,
    remembered: Remembered,
    weights: Weights,
    podium: Floats,
) -> int:
    """Enters the rows of an order that can run the job and may win. Returns how many could run it, of those looked at."""
    looked_at, scarce = 0, weights.scarce
    for at in range(order.rows.size):
        if order.units_free[at] < asked.units:
            continue
        row = order.rows[at]
        price = fleet.numbers[row, PRICE]
        if price > asked.most_price or price * scarce > podium[0, TOTAL] or looked_at >= weights.most_candidates:
            break
        if not _passes(fleet, row, asked):
            continue
        looked_at += 1
        local = _locality(fleet, row, asked, weights.locality)
        factor = local * (scarce / (max(fleet.numbers[row, REPUTATION], 1) / 1000))
        if price * factor > podium[1, TOTAL]:
            continue
        lost = _recall(fleet, row, asked, expected, weights.reach_share, remembered)
        packing = 1 + weights.packing * lost / (1 + lost)
        total = price * factor * packing
        place = _place(podium, fleet, row, total, factor * packing)
        if place == 0:
            podium[1] = podium[0]
        if place < 2:
            podium[place, ROW], podium[place, TOTAL], podium[place, FACTOR] = row, total, factor * packing
            podium[place, PACKING], podium[place, LOCALITY], podium[place, SCARCITY] = packing, local, scarce
    return looked_at


Scan = Callable[[Columns, Order, Asked, Expected, Remembered, Weights, Floats], int]
scan: Scan | None = None  # compiled
_COMPILED = (
    _passes,
    _is_among,
    _has_gpus,
    _may_share,
    _locality,
    _usable,
    _consumption,
    _recall,
    _best_share,
    _place,
    _scan,
)
_compiling = threading.Lock()


def is_available() -> bool:
    return importlib.util.find_spec("numba") is not None


def compile_now() -> bool:
    """Compiles, or loads what an earlier process compiled. False without numba. Safe to call twice and from any thread."""
    global scan  # noqa: PLW0603  compiled once per process, for all engines
    with _compiling:
        if scan is None and is_available():
            numba = importlib.import_module("numba")
            for function in _COMPILED:  # each finds the compiled form of the others under its name
                globals()[function.__name__] = numba.njit(cache=True)(function)
            compiled: Scan = globals()["_scan"]
            compiled(*_of_nothing())  # numba compiles at the first call, whoever makes it
            scan = compiled
    return scan is not None


def _of_nothing() -> tuple[Columns, Order, Asked, Expected, Remembered, Weights, Floats]:
    """Of the types that searches have, over no rows. With other types the first search would compile again, on the event loop."""

    none, table = np.zeros(0, np.int64), np.zeros((0, 1))
    fleet = Columns(*(table.astype(kind) for kind in ("i8", "i8", "i4", "i2", "i4", "i4")))
    expected = Expected(shapes=table, copies=table, reach=table, weights=np.zeros(0))
    remembered = Remembered(np.zeros(0, np.int32), none, np.zeros(0))
    rows = (none,) * 4  # of its last fields
    asked = Asked._make([*(0,) * (len(Asked._fields) - len(rows)), *rows])
    podium = np.array([NOBODY, NOBODY])
    return (
        fleet,
        Order(none, np.zeros(0, np.int16)),
        asked,
        expected,
        remembered,
        Weights(0.0, 0.0, 0.0, 0.0, 0),
        podium,
    )
