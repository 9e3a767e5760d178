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
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WHOLE = 1000  # milli of a GPU
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[Any]
Listed = Any  # integers: a list until it is `told`, an array in a search


# Columns of `Fleet.numbers`
PRICE, CPU_FREE, MEMORY_FREE, DISK_FREE, ISOLATION, REGION, REPUTATION, UNPAID_GPU_MS = range(8)
MAX_UNPAID, EGRESS, PROVEN_GOPS, LEAST_GPU_MILLI, PROTOCOL_VERSION, LEAST_VRAM, LEAST_CAPABILITY, TIE = range(8, 16)


class Columns(NamedTuple):
    """Of the fleet, by row."""

    numbers: Integers
    vram: Integers
    capability: Integers
    gpu_free: Integers
    gpu_owner: Integers
    warm: Integers


class Order(NamedTuple):
    """Of one class, cheapest first: rows, their lines of `Fleet.numbers`, and how many of the units in question each has free."""

    rows: Integers
    lines: Integers  # read one after the other, where those of the fleet are strewn over the memory
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
    regions: Listed  # codes; empty: any
    excluded: Listed  # rows
    only_on: Listed  # rows; with -1 alone, any
    wanted: Listed  # codes of what should be on disk; -1 for what no node has


_LISTS = 4  # the last fields of `Asked`
_LISTS_AT = len(Asked._fields)  # where they begin in what is told: after the numbers, and the length of each


def told(asked: Asked) -> Integers:
    """As one array, which is what a compiled function is given most quickly."""
    lists = asked.regions, asked.excluded, asked.only_on, asked.wanted
    return np.array([*asked[:-_LISTS], *map(len, lists), *chain.from_iterable(lists)], dtype=np.int64)


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


# What the engine weighs by, in an array
PACKING_WEIGHT, LOCALITY_WEIGHT, REACH_SHARE, CANDIDATES = range(4)
_SURELY = 1 - 1e-9  # a bound that is exceeded by more than this much is exceeded, however the factors were rounded


# The podium: the best and the next so far over all orders, one line each. Row -1 and an infinite total: nobody yet.
ROW, TOTAL, FACTOR, PACKING, LOCALITY, SCARCITY = range(6)
NOBODY = (-1.0, np.inf, np.inf, 1.0, 1.0, 1.0)


def _asked(it: Integers) -> Asked:
    """What was `told`."""
    at, excluded = _LISTS_AT, _LISTS_AT + it[17]
    only_on = excluded + it[18]
    wanted = only_on + it[19]
    lists = it[at:excluded], it[excluded:only_on], it[only_on:wanted], it[wanted:]
    a = it[0], it[1], it[2], it[3], it[4], it[5], it[6], it[7], it[8]
    b = it[9], it[10], it[11], it[12], it[13], it[14], it[15], it[16]
    return Asked(*a, *b, *lists)


def _passes(fleet: Columns, line: Integers, row: int, asked: Asked) -> bool:
    """`line`: the numbers of the row. What nearly every job asks comes first."""
    if line[CPU_FREE] < asked.cpus or line[MEMORY_FREE] < asked.memory or line[DISK_FREE] < asked.disk:
        return False
    if line[ISOLATION] & asked.isolation == 0 or line[REPUTATION] < asked.reputation:
        return False
    if asked.regions.size > 0 and not _is_among(line[REGION], asked.regions):
        return False
    if line[UNPAID_GPU_MS] < asked.unpaid_gpu_ms and not 0 <= asked.amount_limit <= line[MAX_UNPAID]:
        return False
    if line[PROVEN_GOPS] < asked.proven_gops or line[PROTOCOL_VERSION] < asked.protocol_version:
        return False
    if asked.egress != 0 and line[EGRESS] & asked.egress == 0:
        return False
    if asked.gpus > 0 and not _has_gpus(fleet, line, row, asked):
        return False
    if not _is_among(-1, asked.only_on) and not _is_among(row, asked.only_on):
        return False
    return not _is_among(row, asked.excluded)


def _is_among(value: int, few: Integers) -> bool:
    found = False
    for one in few:
        found = found or value == one
    return found


def _has_gpus(fleet: Columns, line: Integers, row: int, asked: Asked) -> bool:
    """The free ones are counted already: whether they are good enough, and whether there is one to share."""
    if asked.gpu_milli < line[LEAST_GPU_MILLI]:
        return False
    last = asked.gpus - 1  # columns are sorted, the best GPU first
    if line[LEAST_VRAM] < asked.vram or line[LEAST_CAPABILITY] < asked.capability:  # not all of them will do
        if last >= fleet.vram.shape[1]:
            return False
        if fleet.vram[row, last] < asked.vram or fleet.capability[row, last] < asked.capability:
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
    # Columns, Order, Expected and Remembered, field by field: to unpack a tuple of arrays takes numba longer than most searches last.
    numbers: Integers,
    vram: Integers,
    capability: Integers,
    gpu_free: Integers,
    gpu_owner: Integers,
    warm: Integers,
    rows: Integers,
    lines: Integers,
    units_free: Integers,
    shapes: Floats,
    copies: Floats,
    reach: Floats,
    expected_here: Floats,
    versions: Integers,
    known: Integers,
    consumption: Floats,
    asked_numbers: Integers,
    weights: Floats,
    scarce: float,  # the factor of this class
    podium: Floats,
) -> int:
    """Enters the rows of an order that can run the job and may win. Returns how many could run it, of those looked at."""
    fleet = Columns(numbers, vram, capability, gpu_free, gpu_owner, warm)
    expected = Expected(shapes, copies, reach, expected_here)
    remembered = Remembered(versions, known, consumption)
    asked, looked_at = _asked(asked_numbers), 0
    for at in range(rows.size):
        if units_free[at] < asked.units:
            continue
        line = lines[at]
        price = line[PRICE]
        if price > asked.most_price or price * scarce > podium[0, TOTAL] or looked_at >= weights[CANDIDATES]:
            break
        row = rows[at]
        if not _passes(fleet, line, row, asked):
            continue
        looked_at += 1
        reliable = scarce / (max(line[REPUTATION], 1) / 1000)
        if price * reliable * _SURELY > podium[1, TOTAL]:  # whatever is on its disk
            continue
        local = _locality(fleet, row, asked, weights[LOCALITY_WEIGHT])
        factor = local * reliable
        if price * factor > podium[1, TOTAL]:
            continue
        lost = _recall(fleet, row, asked, expected, weights[REACH_SHARE], remembered)
        packing = 1 + weights[PACKING_WEIGHT] * lost / (1 + lost)
        total = price * factor * packing
        place = _place(podium, fleet, row, total, factor * packing)
        if place == 0:
            podium[1] = podium[0]
        if place < 2:
            podium[place, ROW], podium[place, TOTAL], podium[place, FACTOR] = row, total, factor * packing
            podium[place, PACKING], podium[place, LOCALITY], podium[place, SCARCITY] = packing, local, scarce
    return looked_at


Scan = Callable[..., int]  # as `_scan`
scan: Scan | None = None  # compiled
_COMPILED = (
    _asked,
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


def _of_nothing() -> tuple[Integers | float, ...]:
    """Of the types that searches have, over no rows. With other types the first search would compile again, on the event loop."""
    none, table, lines = np.zeros(0, np.int64), np.zeros((0, 1)), np.zeros((0, 1), np.int64)
    numbers = np.zeros((2, 2), np.int64, order="F")  # of which no smaller array is an example
    fleet = Columns(numbers, *(table.astype(kind) for kind in ("i8", "i4", "i2", "i4", "i4")))
    expected = Expected(shapes=table, copies=table, reach=table, weights=np.zeros(0))
    remembered = Remembered(np.zeros(0, np.int32), none, np.zeros(0))
    numbers_asked = [0] * (len(Asked._fields) - _LISTS)
    asked = told(Asked._make([*numbers_asked, *(none,) * _LISTS]))
    order = Order(none, lines, np.zeros(0, np.int16))
    return (*fleet, *order, *expected, *remembered, asked, np.zeros(4), 1.0, np.array([NOBODY, NOBODY]))
