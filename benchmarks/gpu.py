"""What only a card can say: python -m benchmarks.gpu [--device cuda:0] [--quick]

For a person with an NVIDIA card, CUDA's torch and no network: one command, about five minutes, no marketplace. Three parts, each against the CPU of the
same machine:

1. digests of the hardware proof: every path of the card (int8, float32 in exact blocks) against NumPy, chain and walk;
2. what a proof costs: chains on the card, and 64 rows of them on the CPU; 90 % of the free memory filled and walked;
3. one catalogue training (transformer) on the card and without it, by its own script: how long, and what it reaches.

The result goes to benchmarks/results/, with the card's name. `--device cpu` runs all of it without a card, small: that shows that this
program works, and nothing about cards; it writes no result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import Figure, conclude
from torg_host.hardware_proof.arithmetic import NumpyArithmetic
from torg_host.hardware_proof.chain import prove_chain, replay_rows
from torg_host.hardware_proof.walk import fill, replay_lanes, walk
from torg_marketplace.rules.proof import LANES_CHECKED, ROWS_CHECKED
from torg_node.hardware.proof.paths import NoDevice, TorchArithmetic
from torg_protocol.proofs import ChainTask, WalkTask

HERE = Path(__file__).resolve().parent
RESULTS, WORKLOAD = HERE / "results", HERE.parent / "workloads/transformer"
ROUNDS, WALK_WIDTH, WALK_PASSES, WALK_LANES, WALK_STEPS = 64, 1024, 4, 4096, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try this program out")
    parser.add_argument("--quick", action="store_true", help="smaller chains, less memory, a shorter training")
    arguments = parser.parse_args()
    on_card = arguments.device != "cpu"
    small = arguments.quick or not on_card
    try:
        paths = [TorchArithmetic(arguments.device, integers=integers) for integers in (True, False)]
    except (NoDevice, RuntimeError) as missing:
        print(
            f"error: {missing}. This needs torch with CUDA and a card that it sees; --device cpu tries the program out",
            file=sys.stderr,
        )
        return 2
    figures = [Figure("digests that differ from NumPy's", sum(wrong_digests(path) for path in paths), "", 0.0)]
    for width in (512,) if small else (2048, 4096, 8192):
        proving_s, checking_s = cost(paths[0], width, 1 if small else 3)
        billions = 2 * width**3 * ROUNDS / proving_s / 1e9
        figures += [
            Figure(f"n = {width}: prover on {paths[0].name}", proving_s, "s"),
            Figure(f"n = {width}: that is", billions, "billion operations/s"),
            Figure(f"n = {width}: verifier on this machine's CPU", checking_s, "s"),
        ]
    figures += walked(paths[0], arguments.device, small=small)
    figures += trained(steps=20 if small else 1500, on_card=on_card)
    return conclude_and_keep(figures, arguments.device)


def wrong_digests(path: TorchArithmetic) -> int:
    """Rows of chains and lanes of a walk that come out otherwise than on NumPy."""
    numpy, wrong = NumpyArithmetic(), 0
    for width in (64, 256, 1024, 2048):
        task = ChainTask(rows=256, width=width, rounds=8)
        mine = prove_chain(numpy, task, b"digests", numpy.factor(b"B", width))
        wrong += int((prove_chain(path, task, b"digests", path.factor(b"B", width)) != mine).sum())
    lanes = WalkTask(rows=512, width=256, passes=3, lanes=64, steps=8)
    both = [
        walk(each, lanes, b"walk", fill(each, lanes, b"walk", each.factor(b"F", lanes.width))) for each in (numpy, path)
    ]
    return wrong + int((both[0] != both[1]).sum())


def cost(path: TorchArithmetic, width: int, rounds: int) -> tuple[float, float]:
    """Seconds of the prover and of the verifier, medians of as many runs in turns. Raises RuntimeError when they disagree."""
    task, numpy = ChainTask(rows=width, width=width, rounds=ROUNDS), NumpyArithmetic()
    theirs, mine = path.factor(b"B", width), numpy.factor(b"B", width)
    rows = sorted(random.Random(width).sample(range(width), ROWS_CHECKED))
    proving, checking = [], []
    for number in range(rounds):
        seed = number.to_bytes(4, "little")
        took_s, digests = timed(lambda seed=seed: prove_chain(path, task, seed, theirs))
        proving.append(took_s)
        took_s, right = timed(lambda seed=seed: replay_rows(task, seed, mine, rows))
        checking.append(took_s)
        if not (digests[rows] == right).all():
            raise RuntimeError("prover and verifier disagree")
    return median(proving), median(checking)


def walked(path: TorchArithmetic, device: str, *, small: bool) -> list[Figure]:
    """Memory filled, walked from memory, and checked without any."""
    if device == "cpu":
        rows, width = 4096, 256
    else:
        free = torch.cuda.mem_get_info(torch.device(device))[0] * 9 // 10
        rows, width = (min(free, 1 << 30) if small else free) // WALK_WIDTH, WALK_WIDTH
    steps = 8 if small else WALK_STEPS
    task = WalkTask(rows=rows, width=width, passes=WALK_PASSES, lanes=WALK_LANES, steps=steps)
    factor = path.factor(b"F", width)
    filling_s, memory = timed(lambda: synchronised(device, fill(path, task, b"walk", factor)))
    walking_s, lanes = timed(lambda: walk(path, task, b"walk", memory))
    chosen = sorted(random.Random(1).sample(range(task.lanes), LANES_CHECKED))
    checking_s, right = timed(lambda: replay_lanes(task, b"walk", NumpyArithmetic().factor(b"F", width), chosen))
    return [
        Figure("walks that differ from NumPy's", int((np.asarray(lanes)[chosen] != right).sum()), "", 0.0),
        Figure("memory filled", rows * width / 2**30, "GiB"),
        Figure("filling it", filling_s, "s"),
        Figure("walking it", walking_s, "s"),
        Figure(f"checking {LANES_CHECKED} walks on one core", checking_s, "s"),
    ]


def synchronised(device: str, value: Any) -> Any:
    if device != "cpu":
        torch.cuda.synchronize(torch.device(device))
    return value


def trained(*, steps: int, on_card: bool) -> list[Figure]:
    """The same script with the card and without it."""
    without_s, without = training(steps, visible="")
    figures = [
        Figure(f"transformer, {steps} steps, on one core", without_s, "s"),
        Figure("bits per character it reaches", without["bits_per_character"], ""),
    ]
    if on_card:
        with_s, reached = training(steps, visible=None)
        apart = abs(reached["bits_per_character"] - without["bits_per_character"])
        figures += [
            Figure(f"transformer, {steps} steps, on the card", with_s, "s"),
            Figure("bits per character apart", apart, "", 0.05),
        ]
    return figures


def training(steps: int, *, visible: str | None) -> tuple[float, dict[str, Any]]:
    """`visible`: of CUDA's devices; None: as it is."""
    with tempfile.TemporaryDirectory(prefix="torg-gpu-") as scratch:
        folder = Path(scratch)
        env = dict(os.environ) | {
            "TORG_CHECKPOINT_DIR": f"{folder}/checkpoints",
            "TORG_OUTPUT_DIR": f"{folder}/outputs",
        }
        env |= {
            "TORG_PROGRESS_FILE": f"{folder}/progress.jsonl",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        env |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        argv = [sys.executable, "train.py", "--steps", str(steps)]
        took_s, done = timed(
            lambda: subprocess.run(argv, cwd=WORKLOAD, env=env, check=False, capture_output=True, text=True)
        )
        if done.returncode:
            raise RuntimeError(f"the training failed:\n{done.stderr[-2000:]}")
        return took_s, json.loads((folder / "outputs/metrics.json").read_text())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def conclude_and_keep(figures: list[Figure], device: str) -> int:
    if device == "cpu":
        return conclude("gpu", figures, notes=["tried out on a CPU: nothing here says anything about a card."])
    name = torch.cuda.get_device_name(torch.device(device))
    about = {"card": name, "torch": torch.__version__, "cuda": torch.version.cuda, "machine": platform.machine()}
    status = conclude("gpu", figures, notes=[json.dumps(about)])
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    kept = about | {"reached": not status, "figures": {each.name: round(each.value, 6) for each in figures}}
    file.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"kept in {file}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
