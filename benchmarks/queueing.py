"""Who has to wait: the OpenB trace with its times, arrivals sped up, on a tenth of the fleet.

    python -m benchmarks.queueing [--quick] [--traces DIR] [--variant gpuspec33]

DIR holds the trace (else $TORG_CORPORA/traces/openb does). The GPU pods of `gpuspec33` (a third of them want certain models) arrive 30 times as fast on 121 of the 1,213 nodes and run as long
as they did. Share of jobs that cannot start at once, over three fleets (--quick: one); best fit in the same run for comparison.
A waiting job is tried again whenever one ends, in the market's backlog order. No policy sees anything before it arrives.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Protocol

import numpy as np

from benchmarks.openb.market import DECIMALS, PRICE, demand, snapshots
from benchmarks.openb.rivals import Cluster, best_fit
from benchmarks.openb.trace import Pod, TraceNode, add_traces_option, nodes, pods
from benchmarks.report import Figure, conclude
from torg_marketplace.matching.backlog import Backlog, Waiting
from torg_marketplace.matching.engine import Engine

VARIANT, SPEED, FLEET = "gpuspec33", 30, 121
SEEDS = (0, 1, 2)
MOST_WAITING_PERCENT = 1.0


class Placer(Protocol):
    """Starts a pod and returns how to end it; None when it does not fit now."""

    def arrive(self, pod: Pod) -> None: ...

    def start(self, pod: Pod) -> Callable[[], None] | None: ...


class Market:
    def __init__(self, fleet: Sequence[TraceNode], seed: int) -> None:
        self._engine = Engine(DECIMALS, snapshots(fleet, seed))

    def arrive(self, pod: Pod) -> None:
        self._engine.observe(demand(pod))

    def start(self, pod: Pod) -> Callable[[], None] | None:
        asked = demand(pod)
        chosen = self._engine.decide(asked)
        if chosen is None:
            return None
        self._engine.take(chosen.node_id, asked, chosen.gpus)
        return lambda: self._engine.give(chosen.node_id, asked, chosen.gpus)


class BestFit:
    def __init__(self, fleet: Sequence[TraceNode], _seed: int) -> None:
        self._cluster = Cluster(fleet)

    def arrive(self, pod: Pod) -> None:
        """Learns nothing."""

    def start(self, pod: Pod) -> Callable[[], None] | None:
        cluster = self._cluster
        rows = cluster.fits(pod)
        if not rows.size:
            return None
        row, gpu = best_fit(cluster, pod, rows)
        before = cluster.gpu[row].copy()
        cluster.place(row, pod, gpu)
        taken = before - cluster.gpu[row]

        def end() -> None:
            cluster.gpu[row] += taken
            cluster.cpu[row] += pod.cpu_milli
            cluster.memory[row] += pod.memory_mib

        return end


def fleet_of(seed: int) -> list[TraceNode]:
    return random.Random(seed).sample(nodes(), FLEET)


def arrivals(fleet: Sequence[TraceNode], variant: str = VARIANT) -> list[tuple[int, Pod]]:
    """(ms, pod) in order, of those that some node of the fleet could hold when empty. Ends the process for a variant without times."""
    empty = Cluster(fleet)
    asked = [pod for pod in pods(variant) if pod.gpus and pod.created_s is not None and empty.fits(pod).size]
    if not asked:
        sys.exit(f"{variant} has no pods with times that fit this fleet: take another --variant")
    return sorted(((1000 * (pod.created_s or 0) // SPEED, pod) for pod in asked), key=lambda item: item[0])


def waits_ms(placer: Placer, arriving: Sequence[tuple[int, Pod]]) -> list[int]:
    """How long each started job waited; those that never start wait until the end."""
    waited: list[int] = []
    ending: list[tuple[int, int, Callable[[], None]]] = []
    backlog, waiting = Backlog(), dict[str, tuple[Waiting, Pod]]()

    def start(pod: Pod, since_ms: int, now_ms: int) -> bool:
        if (end := placer.start(pod)) is None:
            return False
        waited.append(now_ms - since_ms)
        heapq.heappush(ending, (now_ms + 1000 * (pod.lasts_s or 1), len(waited), end))
        return True

    def backfill(now_ms: int) -> None:
        for job in backlog.turns([job for job, _ in waiting.values()], now_ms, {}):
            if start(waiting[job.job_id][1], job.since_ms, now_ms):
                del waiting[job.job_id]
            else:
                backlog.failed(job)

    def end_until(now_ms: int) -> None:
        while ending and ending[0][0] <= now_ms:
            at_ms, _, end = heapq.heappop(ending)
            end()
            if waiting:
                backfill(at_ms)

    for number, (now_ms, pod) in enumerate(arriving):
        end_until(now_ms)
        placer.arrive(pod)
        if not start(pod, now_ms, now_ms):
            name = f"{number:06}"
            waiting[name] = Waiting(name, PRICE, now_ms, demand=demand(pod)), pod
    last_ms = arriving[-1][0]
    while ending:
        last_ms = ending[0][0]
        end_until(last_ms)
    return waited + [last_ms - job.since_ms for job, _ in waiting.values()]


def measure(
    policy: Callable[[Sequence[TraceNode], int], Placer], seeds: Sequence[int], variant: str
) -> tuple[float, float]:
    """Percent of jobs that wait, and the mean wait of all jobs in seconds; means over the fleets."""
    shares, means = [], []
    for seed in seeds:
        fleet = fleet_of(seed)
        waited = np.array(waits_ms(policy(fleet, seed), arrivals(fleet, variant)))
        shares.append(100 * float((waited > 0).mean()))
        means.append(float(waited.mean()) / 1000)
    return mean(shares), mean(means)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one fleet")
    parser.add_argument("--variant", default=VARIANT, help="of the trace's pod lists, one that has times")
    add_traces_option(parser)
    asked = parser.parse_args()
    seeds = SEEDS[:1] if asked.quick else SEEDS
    figures = []
    for name, policy, bound in (("best fit", BestFit, None), ("engine", Market, MOST_WAITING_PERCENT)):
        share, wait_s = measure(policy, seeds, asked.variant)
        figures += [
            Figure(f"{name}: jobs that wait", share, "%", bound),
            Figure(f"{name}: mean wait of all jobs", wait_s, "s"),
        ]
    note = f"{asked.variant}, {SPEED}x arrivals, {FLEET} nodes, {len(seeds)} fleet(s)"
    return conclude("queueing", figures, notes=[note])


if __name__ == "__main__":
    sys.exit(main())
