"""Each workload of the catalogue against its published target: python -m benchmarks.catalogue [--quick] [NAME...]

Full runs use the options of job.yaml and the target of target.yaml, about five minutes on one core; quick ones their `quick` options and
floors. Each runs as a node would run it: packed, unpacked elsewhere, one thread. `cnn` reports its own accuracy on unvaried digits here.

`--container N` runs the first workload N times on this host and N times in the sandbox, in turns and with the limits of its job.yaml, and
compares: what the walls cost, start of the container and imports included (2 by default when no names are given).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Figure, conclude
from tests.support.workload_runs import NAMES, environment, prepare, run_in_sandbox, script_of, target_of

CONTAINER_OVER_HOST = 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shortened runs with looser targets")
    parser.add_argument(
        "--container", type=int, metavar="N", help="pairs of runs that compare sandbox and host; 0: none"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    figures = []
    for name in arguments.names or NAMES:
        print(f"{name} ...", flush=True)
        metrics, wall_s = train(name, quick=arguments.quick)
        figures += figures_of(name, metrics, wall_s, quick=arguments.quick)
    pairs = arguments.container if arguments.container is not None else 0 if arguments.names else 2
    if pairs:
        figures.append(container_over_host((arguments.names or ["rnn"])[0], pairs, quick=arguments.quick))
    return conclude("catalogue", figures)


def train(name: str, *, quick: bool) -> tuple[dict[str, Any], float]:
    """What metrics.json says, and the seconds from start to exit, imports included."""
    with tempfile.TemporaryDirectory(prefix="torg-catalogue-") as scratch:
        root = prepare(name, Path(scratch))
        env = {"PATH": os.environ["PATH"], "HOME": scratch, **environment(root)}
        began = time.perf_counter()
        command = [sys.executable, *script_of(name, quick=quick)]
        subprocess.run(command, cwd=root / "work", env=env, check=True, capture_output=True)
        wall_s = time.perf_counter() - began
        metrics: dict[str, Any] = json.loads((root / "outputs/metrics.json").read_text())
        return metrics, wall_s


def container_over_host(name: str, pairs: int, *, quick: bool) -> Figure:
    """Median of the ratios of neighbours: a machine that slows down meanwhile slows both of a pair."""
    ratios = []
    for number in range(pairs):
        print(f"{name}: sandbox against host, {number + 1} of {pairs} ...", flush=True)
        ratios.append(train_in_sandbox(name, quick=quick) / train(name, quick=quick)[1])
    return Figure(f"{name}: in the sandbox over on the host", median(ratios), "x", CONTAINER_OVER_HOST)


def train_in_sandbox(name: str, *, quick: bool) -> float:
    """Seconds from the call to the end, with everything that `train` has and the walls and limits of a job."""
    with tempfile.TemporaryDirectory(prefix="torg-catalogue-") as scratch:
        root = prepare(name, Path(scratch))
        began = time.perf_counter()
        run = asyncio.run(run_in_sandbox(name, root, quick=quick))
        wall_s = time.perf_counter() - began
    if not run.succeeded:
        raise RuntimeError(f"{name} in the sandbox: {run.reason}, code {run.code}: {run.stderr[-500:]!r}")
    return wall_s


def figures_of(name: str, metrics: dict[str, Any], wall_s: float, *, quick: bool) -> list[Figure]:
    """The metric against its target, and, in full runs, against each baseline that it has to beat."""
    target = target_of(name)
    value, is_least = metrics[target["metric"]], "least" in target
    direction = "least" if is_least else "most"
    bound = (target["quick"] if quick else target)[direction]
    figures = [Figure(f"{name}: {target['metric']}", value, "", bound, direction)]
    for baseline in [] if quick else target.get("beats", []):
        lead = value - metrics[baseline] if is_least else metrics[baseline] - value
        figures.append(Figure(f"{name}: better than {baseline} by", lead, "", 0.0, "least"))
    return [*figures, Figure(f"{name}: from start to exit", wall_s, "s")]


if __name__ == "__main__":
    sys.exit(main())
