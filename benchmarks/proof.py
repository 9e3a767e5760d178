"""What a proof of hardware costs the prover and the verifier, and whom it lets pass: python -m benchmarks.proof [--quick]

All on one core. The ratio is prover over verifier, each with its matrix B made before (a verifier makes it once a day), the prover on the quickest
path of this machine, the verifier on NumPy as in production, in turns; T = 64 rounds, 64 rows checked. GPU time per hour is the default schedule's
target, not measured: no card here.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.report import Figure, conclude
from tests.adversary.cheats import PartialChain
from tests.support.provers import Prover, challenge_of, judged
from torg_host.hardware_proof.arithmetic import NumpyArithmetic
from torg_host.hardware_proof.chain import prove_chain, replay_rows
from torg_marketplace.rules.proof import ROWS_CHECKED, TARGET_MS
from torg_node.hardware.proof.paths import choose_path
from torg_protocol.proofs import ChainTask

ROUNDS = 64
HOUR_MS = 3_600_000
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def cost(width: int, rounds: int) -> tuple[float, float, float, str]:
    """Prover over verifier (median of paired runs), the seconds of each, and the prover's path."""
    task = ChainTask(rows=width, width=width, rounds=ROUNDS)
    prover, verifier = choose_path("cpu"), NumpyArithmetic()
    theirs, mine = prover.factor(b"B", width), verifier.factor(b"B", width)
    rows = sorted(random.Random(width).sample(range(task.rows), ROWS_CHECKED))
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        seed = number.to_bytes(4, "little")
        proving_s, digests = timed(lambda seed=seed: prove_chain(prover, task, seed, theirs))
        checking_s, right = timed(lambda seed=seed: replay_rows(task, seed, mine, rows))
        if not (digests[rows] == right).all():
            raise RuntimeError("prover and verifier disagree")
        pairs.append((proving_s, checking_s))
    ratio = median(a / b for a, b in pairs)
    return ratio, median(a for a, _ in pairs), median(b for _, b in pairs), prover.name


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this one-threaded process: others on the machine do not count."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def false_rejects(runs: int) -> tuple[int, int]:
    """Of honest provers: wrong by digest; by time when a chain that should take a second takes what it takes here, two of three."""
    wrong = sum(judged(Prover(), random.Random(number)).result == "false" for number in range(runs))
    return wrong, timing_rejects(max(runs // 20, 5))


def timing_rejects(runs: int) -> int:
    """Runs in which two of three measurements, on this machine as busy as it is, are a class lower than the median of all."""
    prover, task = choose_path("cpu"), ChainTask(rows=1024, width=512, rounds=32)
    factor = prover.factor(b"B", 512)
    speeds = []
    for number in range(3 * runs):
        began = time.perf_counter()
        prove_chain(prover, task, number.to_bytes(4, "little"), factor)
        speeds.append(1 / (time.perf_counter() - began))
    usual = median(speeds)
    return sum(
        sum(speed * 1.3 < usual for speed in speeds[first : first + 3]) >= 2 for first in range(0, len(speeds), 3)
    )


def accepted_at(share: float, runs: int) -> float:
    """Share of cheats that pass though they did only so much of the work."""
    passed = 0
    for number in range(runs):
        chance = random.Random(number)
        challenge = challenge_of(chance)
        passed += judged(PartialChain(share=share, chance=chance), chance, challenge=challenge).result != "false"
    return passed / runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    quick = parser.parse_args().quick
    if any(os.environ.get(name) != value for name, value in ONE_CORE.items()):  # libraries read it when they load
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.proof", *sys.argv[1:]], {**os.environ, **ONE_CORE})  # noqa: S606 - this program again
    figures, path = [], ""
    for width, least in ((2048, 4.0), (4096, 10.0)):
        print(f"chain of {width} x {width}, {ROUNDS} rounds ...", flush=True)
        ratio, proving_s, checking_s, path = cost(width, 1 if quick else 3)
        figures += [
            Figure(f"n = {width}: prover over verifier", ratio, "x", least, "least"),
            Figure(f"n = {width}: prover", proving_s, "s"),
            Figure(f"n = {width}: verifier", checking_s, "s"),
        ]
    runs = 100 if quick else 1_000
    print(f"{runs} honest runs and {runs} cheats ...", flush=True)
    wrong, slow = false_rejects(runs)
    figures += [
        Figure(f"digest false rejects in {runs} honest runs", wrong, "", 0.0),
        Figure(f"timing false rejects in {max(runs // 20, 5)} (2 of 3 attempts)", slow, ""),
        Figure("cheats at 90 % of the work accepted", accepted_at(0.9, runs), "", 0.01),
        Figure("device time per hour at the default schedule", 100 * 2 * TARGET_MS / HOUR_MS, "%", 0.2),
    ]
    notes = [f"prover: {path}; verifier: numpy float32, B made before. CUDA: not run, there is no card here."]
    return conclude("proof", figures, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
