"""Each workload of the catalogue against its published target: python -m benchmarks.catalogue [--quick] [NAME...]

Full runs use the options of job.yaml and the target of target.yaml, about five minutes on one core; quick ones their `quick` options and
floors. Each runs as a node would run it: packed, unpacked elsewhere, one thread. `cnn` reports its own accuracy on unvaried digits here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, conclude
from tests.support.workload_runs import NAMES, WORKLOADS, job_of, target_of
from torg_host.archive import pack, unpack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shortened runs with looser targets")
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
    return conclude("catalogue", figures)


def train(name: str, *, quick: bool) -> tuple[dict[str, Any], float]:
    """What metrics.json says, and the seconds from start to exit, imports included."""
    with tempfile.TemporaryDirectory(prefix="torg-catalogue-") as scratch:
        root = Path(scratch)
        pack(WORKLOADS / name, root / "workspace.tar.zst")
        unpack(root / "workspace.tar.zst", root / "work")
        _, script, *options = job_of(name)["command"]
        if quick:
            options = target_of(name)["quick"]["options"]
        env = {"PATH": os.environ["PATH"], "HOME": scratch, "OMP_NUM_THREADS": "1"}
        env |= {"TORG_CHECKPOINT_DIR": str(root / "checkpoints"), "TORG_OUTPUT_DIR": str(root / "outputs")}
        began = time.perf_counter()
        subprocess.run([sys.executable, script, *options], cwd=root / "work", env=env, check=True, capture_output=True)
        wall_s = time.perf_counter() - began
        metrics: dict[str, Any] = json.loads((root / "outputs/metrics.json").read_text())
        return metrics, wall_s


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
