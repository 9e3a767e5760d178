"""The space phase: memory is filled with rows that mix, then walked along paths that only the rows' content tells.

Each pass pairs row i with row (c - i) mod m and replaces both, in place, so that nearly all of a device's memory can be filled. A row
after T passes depends on 2^T first rows: who has not stored it computes 2^T - 1 products to read it. Each step reads a whole row under a key
that the walk has made so far, so that neither a digest nor a part of a row can stand for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from torg_host.hardware_proof.arithmetic import Arithmetic, Int8s, Int64s, NumpyArithmetic, Words, keys_of
from torg_protocol.proofs import WalkTask


def fill(arithmetic: Arithmetic, task: WalkTask, seed: bytes, factor: Any, *, rows_at_once: int = 16_384) -> Any:
    memory = arithmetic.memory(task.rows, task.width)
    for first in range(0, task.rows, rows_at_once):
        end = min(first + rows_at_once, task.rows)
        memory[first:end] = arithmetic.entries(seed, arithmetic.numbers(first, end), task.width)
    for number in range(task.passes):
        for low, high in _segments(centre(seed, number, task.rows), task.rows):
            _reflect(arithmetic, memory, factor, number, low, high, rows_at_once)
    return memory


def walk(arithmetic: Arithmetic, task: WalkTask, seed: bytes, memory: Any) -> Words:
    """The final state of each lane."""
    states = arithmetic.lanes(keys_of(seed)[0], task.lanes)
    for number in range(task.steps):
        states = arithmetic.step(memory[states % task.rows], states, number)
    return arithmetic.words(states)


def replay_lanes(task: WalkTask, seed: bytes, factor: Any, lanes: Sequence[int]) -> Words:
    """What these lanes must end in, with no memory filled."""
    arithmetic = NumpyArithmetic()
    states = arithmetic.lanes(keys_of(seed)[0], task.lanes)[np.asarray(lanes, dtype=np.int64)]
    for number in range(task.steps):
        rows = rows_after(arithmetic, task, seed, factor, states % task.rows, task.passes)
        states = arithmetic.step(rows, states, number)
    return arithmetic.words(states)


def rows_after(
    arithmetic: NumpyArithmetic, task: WalkTask, seed: bytes, factor: Any, rows: Int64s, passes: int
) -> Int8s:
    """Rows as they are after so many passes, computed from the 2^passes first ones that each depends on."""
    if passes == 0:
        return arithmetic.entries(seed, rows, task.width)
    partners = (centre(seed, passes - 1, task.rows) - rows) % task.rows
    before = rows_after(arithmetic, task, seed, factor, np.concatenate([rows, partners]), passes - 1)
    mine, theirs = before[: len(rows)], before[len(rows) :]
    return arithmetic.narrowed(mine, factor, passes - 1, theirs)


def centre(seed: bytes, number: int, rows: int) -> int:
    """Row i is paired with (centre - i) mod rows."""
    return int.from_bytes(hashlib.sha256(seed + b"centre" + number.to_bytes(4, "little")).digest()[:8], "little") % rows


def _segments(middle: int, rows: int) -> Iterator[tuple[int, int]]:
    """The reflection maps [0, middle] to itself and the rest to itself, each reversed."""
    yield 0, middle + 1
    if middle + 1 < rows:
        yield middle + 1, rows


def _reflect(
    arithmetic: Arithmetic, memory: Any, factor: Any, number: int, low: int, high: int, rows_at_once: int
) -> None:
    half = (high - low) // 2
    for first in range(0, half, rows_at_once):
        end = min(first + rows_at_once, half)
        near = memory[low + first : low + end]
        far = arithmetic.flipped(memory[high - end : high - first])
        new_near = arithmetic.narrowed(near, factor, number, far)
        new_far = arithmetic.narrowed(far, factor, number, near)
        memory[low + first : low + end] = new_near
        memory[high - end : high - first] = arithmetic.flipped(new_far)
    if (high - low) % 2:
        middle = memory[low + half : low + half + 1]
        memory[low + half : low + half + 1] = arithmetic.narrowed(middle, factor, number, middle)
