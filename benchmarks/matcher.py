"""How fast the matching engine decides: a synthetic market in steady state, one core.

    python -m benchmarks.matcher [--quick] [--nodes N]

12 classes of GPU, nodes of 1 to 8, prices spread by 20 %, 8 regions, images on disk; jobs of 1 to 8 GPUs, 30 % pinned to a class,
30 % to a region, most with a price cap. Half of the fleet's nodes' worth of jobs runs when measuring starts; then each arrival is
observed, decided and taken, and a random running job ends. A match is observe + decide + take; the rate includes the endings.
The compiled search is used where numba is installed, as in a running marketplace; it decides as the other does. Compiling it takes ten seconds of
a core, once per machine, and comes before the measuring.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import sys
import time

import numpy as np

from torg_marketplace.matching import kernel
from torg_marketplace.matching.engine import Decision, Engine
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.states import Liveness, NodeState

DECIMALS = 6
NODES, QUICK_NODES = 100_000, 10_000
MATCHES, QUICK_MATCHES = 50_000, 5_000
LEAST_PER_S, MOST_P99_US = 5_000, 1_000
AIM_PER_S, AIM_P99_US = 30_000, 150
# name, GiB of GPU memory, price per GPU-hour, share of nodes
CLASSES = (
    ("rtx-3060", 12, 0.08, 0.12),
    ("rtx-3080", 10, 0.10, 0.08),
    ("rtx-3090", 24, 0.16, 0.16),
    ("rtx-4080", 16, 0.20, 0.06),
    ("rtx-4090", 24, 0.35, 0.20),
    ("rtx-5090", 32, 0.50, 0.06),
    ("a5000", 24, 0.22, 0.05),
    ("a6000", 48, 0.45, 0.06),
    ("l40s", 48, 0.80, 0.05),
    ("a100", 80, 1.20, 0.07),
    ("h100", 80, 2.20, 0.07),
    ("h200", 141, 3.00, 0.02),
)
REGIONS = tuple(f"region-{number}" for number in range(8))
IMAGES = tuple(f"registry.example/image-{number}@sha256:{number:064x}" for number in range(16))


def node(number: int, chance: random.Random) -> NodeSnapshot:
    name, vram_gib, price, _ = chance.choices(CLASSES, weights=[share for *_, share in CLASSES])[0]
    gpus = chance.choices([1, 2, 4, 8], weights=[60, 15, 10, 15])[0]
    inventory = Inventory(
        source="simulated",
        gpu_class=name,
        gpus=tuple(GpuInfo(uuid=f"{slot}", model=name, vram_bytes=vram_gib << 30) for slot in range(gpus)),
        cpu_millis=gpus * chance.choice([6_000, 8_000, 12_000, 16_000]),
        memory_bytes=gpus * chance.choice([16, 32, 64]) << 30,
        disk_bytes=chance.choice([100, 250, 500, 1_000, 2_000]) << 30,
    )
    offer = Offer(
        node=NodeId(f"node-{number}"),
        sequence=1,
        marketplace="benchmark",
        price_per_gpu_hour=round(price * 10**DECIMALS * chance.lognormvariate(0, 0.2)),
        slots=4,
        inventory=inventory,
        executor="fake",
        isolation=("sandbox", "container"),
        payout_address="benchmark",
        max_unpaid=10**15,
        region=chance.choice(REGIONS),
    )
    return NodeSnapshot(
        offer.node,
        offer,
        NodeState.ACTIVE,
        Liveness.ALIVE,
        connected=True,
        warm=frozenset(chance.sample(IMAGES, 4)),
        reputation_permille=round(1000 * (1 - chance.betavariate(1, 60))),
    )


def demand(chance: random.Random) -> Demand:
    vram_gib = chance.choices([8, 10, 16, 24, 40, 48, 80, 141], weights=[25, 10, 10, 25, 5, 10, 13, 2])[0]
    gpus = chance.choices([1, 2, 4, 8], weights=[75, 10, 8, 7])[0]
    fit = [item for item in CLASSES if item[1] >= vram_gib]
    pinned = chance.choice(fit) if chance.random() < 0.3 else None
    cheapest = pinned[2] if pinned else min(price for _, _, price, _ in fit)
    resources = {
        "gpus": gpus,
        "min_vram": f"{vram_gib}GiB",
        "cpus": gpus * chance.choice([2, 4, 6]),
        "memory": f"{gpus * chance.choice([4, 8, 16])}GiB",
        "disk": f"{chance.choice([20, 50, 100])}GiB",
    }
    if pinned:
        resources["gpu_class"] = pinned[0]
    spec = {"version": 1, "command": ["x"], "image": chance.choice(IMAGES), "resources": resources}
    return Demand(
        spec=load_job_spec(spec),
        client="benchmark",
        price_limit=round(cheapest * 10**DECIMALS * chance.lognormvariate(0.25, 0.35))
        if chance.random() < 0.8
        else None,
        regions=frozenset({chance.choice(REGIONS)}) if chance.random() < 0.3 else frozenset(),
        min_reputation_permille=990 if chance.random() < 0.3 else 900,
    )


class Market:
    def __init__(self, nodes: int, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.demands = [demand(self.chance) for _ in range(4_096)]
        began = time.monotonic()
        self.engine = Engine(DECIMALS, (node(number, self.chance) for number in range(nodes)))
        self.build_s = time.monotonic() - began
        self.running: list[tuple[Demand, Decision]] = []

    def arrive(self) -> bool:
        asked = self.chance.choice(self.demands)
        self.engine.observe(asked)
        chosen = self.engine.decide(asked)
        if chosen is None:
            return False
        self.engine.take(chosen.node_id, asked, chosen.gpus)
        self.running.append((asked, chosen))
        return True

    def end_one(self) -> None:
        place = self.chance.randrange(len(self.running))
        self.running[place], self.running[-1] = self.running[-1], self.running[place]
        asked, chosen = self.running.pop()
        self.engine.give(chosen.node_id, asked, chosen.gpus)


def measure(nodes: int, matches: int) -> dict[str, float]:
    print(f"{nodes:,} nodes join, {nodes // 2:,} jobs start", file=sys.stderr)
    market = Market(nodes)
    tried = 0
    while len(market.running) < nodes // 2 and tried < nodes:
        market.arrive()
        tried += 1
    spent_ns, matched = np.zeros(matches), 0
    gc.collect()
    gc.freeze()
    began = time.perf_counter_ns()
    for number in range(matches):
        start = time.perf_counter_ns()
        matched += market.arrive()
        spent_ns[number] = time.perf_counter_ns() - start
        market.end_one()
    took_s = (time.perf_counter_ns() - began) / 1e9
    p50, p99, p999 = np.percentile(spent_ns, [50, 99, 99.9]) / 1_000
    return {
        "nodes": nodes,
        "matches": matches,
        "matched_share": round(matched / matches, 3),
        "matches_per_s": round(matches / took_s),
        "p50_us": round(p50, 1),
        "p99_us": round(p99, 1),
        "p999_us": round(p999, 1),
        "max_us": round(spent_ns.max() / 1_000, 1),
        "build_s": round(market.build_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_NODES:,} nodes, {QUICK_MATCHES:,} matches")
    parser.add_argument("--nodes", type=int)
    asked = parser.parse_args()
    nodes = asked.nodes or (QUICK_NODES if asked.quick else NODES)
    print("compiling the search", file=sys.stderr)
    compiled = kernel.compile_now()
    figures = measure(nodes, QUICK_MATCHES if asked.quick else MATCHES)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, {'compiled' if compiled else 'not compiled'}, one core"
    )
    for name, value in figures.items():
        print(f"{name:<16}{value:>12,}")
    ok = figures["matches_per_s"] >= LEAST_PER_S and figures["p99_us"] <= MOST_P99_US
    result = {
        "benchmark": "matcher",
        "figures": figures,
        "targets": {"matches_per_s": LEAST_PER_S, "p99_us": MOST_P99_US},
        "aims": {"matches_per_s": AIM_PER_S, "p99_us": AIM_P99_US},
        "ok": bool(ok),  # of NumPy
    }
    print("RESULT", json.dumps(result))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
