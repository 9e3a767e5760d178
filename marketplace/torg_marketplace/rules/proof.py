"""What proofs of hardware are worth: how large to ask, what an answer shows, what a node's answers come to.

Exact and timed findings are kept apart. A digest that is wrong is a lie (the arithmetic is exact on every device): a strike, quarantine,
after MAX_STRIKES a ban. Slowness is no lie: it lowers the class that the node is sold as, by the median of its newest three measurements,
so that one bad moment of three costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low
from typing import Literal

from pydantic import BaseModel, ConfigDict

from torg_marketplace.rules.walk_limit import walk_limit_ms
from torg_protocol.proofs import ChainTask, ProofState, ProofStatus, UnitProof, WalkTask

Result = Literal["passed", "slow", "false", "silent"]

ROWS_CHECKED = 64
LANES_CHECKED = 16
TARGET_MS = 2_000  # of a chain
MAX_STRIKES = 3
FIRST_GOPS = 50  # of a unit that nobody has measured: a small question
SAMPLES = 3
DEFAULT_TOLERANCE = 1.3  # a unit may be so much slower than its class
_LEAST_TOLERANCE, _MOST_TOLERANCE, _LEARNED_FROM = 1.15, 1.6, 20
# Dense fp16 TFLOP/s that torch was measured to reach, as a public validator's table lists them; int8 is not slower. A name is believed
# until its unit is this much slower than a quarter of it.
KNOWN_TFLOPS = {
    "h200": 610,
    "h100": 570,
    "a100": 239,
    "l40s": 171,
    "4090": 157,
    "l40": 116,
    "3090": 66,
    "a5000": 60,
    "l4": 51,
    "a6000": 48,
    "a40": 40,
}


class UnitRecord(BaseModel):
    """Measurements of one unit, newest last, 10^9 operations per second."""

    model_config = ConfigDict(frozen=True)

    samples: tuple[float, ...] = ()
    memory_bytes: int = 0
    memory_misses: int = 0
    arithmetic: str = ""

    @property
    def gops(self) -> int:
        return class_floor(median_low(self.samples)) if self.samples else 0


class ProofRecord(BaseModel):
    """All that is remembered of a node's proofs; every one of them is kept as evidence besides."""

    model_config = ConfigDict(frozen=True)

    units: dict[str, UnitRecord] = {}
    strikes: int = 0
    silent: int = 0  # in a row
    passed: int = 0
    last: Result | None = None
    judged_at_ms: int = 0
    detail: str = ""

    @property
    def state(self) -> ProofState:
        if self.strikes >= MAX_STRIKES:
            return "banned"
        if self.strikes:
            return "quarantined"
        return "proven" if self.units and all(unit.samples for unit in self.units.values()) else "unproven"

    @property
    def gops(self) -> int:
        """Of the slowest unit; 0 unless proven."""
        return min(unit.gops for unit in self.units.values()) if self.state == "proven" else 0

    @property
    def memory_bytes(self) -> int:
        return min(unit.memory_bytes for unit in self.units.values()) if self.state == "proven" else 0

    def status(self) -> ProofStatus:
        units = tuple(
            UnitProof(unit=name, gops=unit.gops, memory_bytes=unit.memory_bytes, arithmetic=unit.arithmetic)
            for name, unit in sorted(self.units.items())
        )
        return ProofStatus(state=self.state, units=units, judged_at_ms=self.judged_at_ms, detail=self.detail)


class Finding(BaseModel):
    """What one proof shows. `gops` is measured when the digests are right."""

    model_config = ConfigDict(frozen=True)

    result: Result
    detail: str
    gops: float = 0.0
    memory_bytes: int = 0
    walked_in_time: bool = False
    is_final: bool = True  # False: too short to tell the class; a larger one follows


class Evidence(BaseModel):
    """What the marketplace saw of one proof. Times are its own; `wrong_rows`, `wrong_lanes` by recomputation."""

    model_config = ConfigDict(frozen=True)

    chain: ChainTask
    walk: WalkTask
    chain_ms: int | None
    walk_ms: int | None
    wrong_rows: int
    wrong_lanes: int
    opened: bool
    busy: bool
    was_ready: bool = True


def tasks_for(gops: int, gpu_bytes: int) -> tuple[ChainTask, WalkTask]:
    """A chain of about TARGET_MS on a unit of this speed, and a walk over 90 % of a GPU's memory, or a little of a host's."""
    budget = max(gops, FIRST_GOPS) * 1e6 * TARGET_MS
    width = 1024 if gops < 500 else 2048 if gops < 20_000 else 4096
    rows = min(max(1 << int(math.log2(max(budget / (2 * width**2 * 64), 1))), width), 1 << 20)
    rounds = min(max(int(budget / (2 * width**2 * rows)), 16), 1 << 14)
    chain = ChainTask(rows=rows, width=width, rounds=rounds)
    if not gpu_bytes:
        return chain, WalkTask(rows=1 << 14, width=512, passes=3, lanes=4096, steps=64)
    rows = max(gpu_bytes * 9 // 10 // 1024, 1 << 14)
    return chain, WalkTask(rows=rows, width=1024, passes=4, lanes=1 << 16, steps=256)


def learned_tolerance(slowdowns: Sequence[float]) -> float:
    """How much slower than its class an honest unit of it gets: the 95th percentile of what was seen, within bounds."""
    if len(slowdowns) < _LEARNED_FROM:
        return DEFAULT_TOLERANCE
    ranked = sorted(slowdowns)
    return min(max(ranked[int(0.95 * (len(ranked) - 1))] * 1.05, _LEAST_TOLERANCE), _MOST_TOLERANCE)


def judge_proof(
    seen: Evidence, established_gops: int, tolerance: float = DEFAULT_TOLERANCE, walk_share: float | None = None
) -> Finding:
    """`walk_share`: what was learned of the class (rules/walk_limit.py)."""
    if not seen.was_ready:
        return Finding(result="silent", detail="it did not get ready")
    if seen.chain_ms is None or seen.walk_ms is None or not seen.opened:
        return Finding(result="silent", detail="no whole answer within the time")
    if seen.wrong_rows or seen.wrong_lanes:
        what = f"{seen.wrong_rows} of {ROWS_CHECKED} rows and {seen.wrong_lanes} of {LANES_CHECKED} walks are wrong"
        return Finding(result="false", detail=what)
    gops = seen.chain.operations / max(seen.chain_ms, 1) / 1e6
    in_time = seen.walk_ms <= walk_limit_ms(seen.walk, gops, learned=walk_share, busy=seen.busy)
    memory = seen.walk.size_bytes if in_time else 0
    is_final = seen.chain_ms >= TARGET_MS / 4 or seen.chain.rows >= 1 << 20
    slow = not seen.busy and established_gops > 0 and gops * tolerance < established_gops
    words = f"{gops:,.0f} billion operations/s in {seen.chain_ms} ms, {seen.walk.size_bytes >> 20} MiB walked in {seen.walk_ms} ms"
    if slow:
        words += f"; slower than its class ({established_gops:,})"
    if not in_time:
        words += "; too slow to have been in that memory"
    result: Result = "slow" if slow or not in_time else "passed"
    return Finding(
        result=result, detail=words, gops=gops, memory_bytes=memory, walked_in_time=in_time, is_final=is_final
    )


def remember(
    record: ProofRecord, unit: str, found: Finding, *, arithmetic: str, busy: bool, now_ms: int
) -> ProofRecord:
    """The record after one more proof of one of its units."""
    changes: dict[str, object] = {"judged_at_ms": now_ms, "detail": found.detail, "last": found.result}
    before = record.units.get(unit, UnitRecord())
    match found.result:
        case "false":
            changes |= {"strikes": record.strikes + 1, "silent": 0}
        case "silent":
            changes |= {"silent": record.silent + 1}
            if record.silent + 1 >= 2:  # two in a row: what was established is not believed any more
                changes |= {"units": {**record.units, unit: UnitRecord()}}
        case "passed" | "slow":
            changes |= {"silent": 0, "units": {**record.units, unit: _measured(before, found, arithmetic, busy=busy)}}
            if found.result == "passed":
                changes |= {"passed": record.passed + 1}
                changes |= {"strikes": max(record.strikes - 1, 0)} if record.strikes < MAX_STRIKES else {}
    return record.model_copy(update=changes)


def false_claim(gpu_class: str, unit: UnitRecord) -> str | None:
    """Why the name that the node gives its GPU cannot be right; None when nothing speaks against it."""
    least = next((tflops * 250 for name, tflops in KNOWN_TFLOPS.items() if name in gpu_class.lower()), 0)
    if not least or len(unit.samples) < SAMPLES or unit.gops >= least:
        return None
    return f"{gpu_class} was claimed, {unit.gops:,} billion operations/s were measured where {least:,} are the least"


def due_again_ms(record: ProofRecord, found: Finding, mean_ms: int, chance: float) -> int:
    """Until the next one, by `chance` in [0, 1): soon while much is unknown or wrong, else exponential, so that nobody can tell when."""
    unsure = found.result != "passed" or not found.is_final or record.passed < SAMPLES
    if unsure and record.state != "banned" and record.silent < 3:
        return int(mean_ms / 240 * (1 + 2 * chance))
    return max(int(-math.log(1 - chance) * mean_ms), 1_000)


def class_floor(gops: float) -> int:
    """Lower bound of the class: classes are half powers of two apart, closer ones cannot be told apart from afar."""
    return int(2 ** (math.floor(2 * math.log2(gops)) / 2)) if gops >= 1 else 0


def _measured(before: UnitRecord, found: Finding, arithmetic: str, *, busy: bool) -> UnitRecord:
    """A busy machine is checked for right digests; its speed then says nothing."""
    if busy and before.samples:
        return before
    samples = (*before.samples, found.gops)[-SAMPLES:]
    if not found.is_final or (len(before.samples) == 1 and found.gops > 4 * before.samples[0]):
        samples = (found.gops,)
    misses = 0 if found.walked_in_time else before.memory_misses + 1
    memory = found.memory_bytes if found.walked_in_time else 0 if misses >= 2 else before.memory_bytes
    return UnitRecord(samples=samples, memory_bytes=memory, memory_misses=misses, arithmetic=arithmetic)
