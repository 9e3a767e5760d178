"""The compute phase: `rounds` times X <- narrow(X @ B), committed by a digest per row, replayed for a few rows by the verifier.

Rows do not depend on each other: a verifier that asks for q of m rows does q/m of the work. They are asked for after the commitment, so a
prover that has done the fraction f of the rows passes with probability f^q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torg_host.hardware_proof.arithmetic import Arithmetic, Int64s, NumpyArithmetic
from torg_protocol.proofs import ChainTask


def prove_chain(
    arithmetic: Arithmetic, task: ChainTask, seed: bytes, factor: Any, *, rows_at_once: int = 16_384
) -> Int64s:
    """Digests of all rows, in order."""
    found = []
    for first in range(0, task.rows, rows_at_once):
        x = arithmetic.entries(seed, arithmetic.numbers(first, min(first + rows_at_once, task.rows)), task.width)
        for number in range(task.rounds):
            x = arithmetic.narrowed(x, factor, number)
        found.append(arithmetic.row_digests(x))
    return np.concatenate(found)


def replay_rows(task: ChainTask, seed: bytes, factor: Any, rows: Sequence[int]) -> Int64s:
    """What the digests of these rows must be. `factor` is NumpyArithmetic's; keep it, making it costs more than replaying."""
    arithmetic = NumpyArithmetic()
    x = arithmetic.entries(seed, np.asarray(rows, dtype=np.int64), task.width)
    for number in range(task.rounds):
        x = arithmetic.narrowed(x, factor, number)
    return arithmetic.row_digests(x)
