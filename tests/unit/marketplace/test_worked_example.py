"""The worked example of docs/explanation/how-matching-decides.md is what the code says. Print it with

python -m tests.unit.marketplace.test_worked_example
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.explain import explain, why
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.money import format_amount
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.states import Liveness, NodeState

PAGE = Path(__file__).resolve().parents[3] / "docs" / "explanation" / "how-matching-decides.md"
DECIMALS = 6
IMAGE = "registry.example/trainer:1"


def node(name: str, gpu_class: str, gpus: int, price: str, **changes: object) -> NodeSnapshot:
    vram_gib = {"rtx-3090": 24, "a100": 80}[gpu_class]
    inventory = Inventory(
        source="simulated",
        gpu_class=gpu_class,
        gpus=tuple(GpuInfo(uuid=f"{number}", model=gpu_class, vram_bytes=vram_gib << 30) for number in range(gpus)),
        cpu_millis=16_000 * gpus,
        memory_bytes=64 * gpus << 30,
        disk_bytes=500 << 30,
    )
    offer = Offer(
        node=NodeId(name),
        sequence=1,
        marketplace="example",
        price_per_gpu_hour=round(float(price) * 10**DECIMALS),
        slots=4,
        inventory=inventory,
        executor="fake",
        isolation=("sandbox", "container"),
        payout_address="example",
        max_unpaid=10**9,
        region="eu-north",
    )
    return replace(NodeSnapshot(offer.node, offer, NodeState.ACTIVE, Liveness.ALIVE, connected=True), **changes)  # type: ignore[arg-type]


def job(**resources: object) -> Demand:
    return Demand(load_job_spec({"version": 1, "command": ["train"], "image": IMAGE, "resources": resources}))


def worked_example() -> str:
    engine = Engine(
        DECIMALS,
        [
            node("ash", "rtx-3090", 1, "0.20", warm=frozenset({IMAGE})),
            node("birch", "rtx-3090", 4, "0.19"),
            node("cedar", "rtx-3090", 1, "0.18", reputation_permille=700),
            node("dogwood", "a100", 8, "1.20"),
        ],
    )
    for _ in range(30):
        engine.observe(job(gpus=4))  # what was asked for lately: four GPUs at once
    asked, lines = job(gpus=1, min_vram="20GiB"), []
    chosen = engine.decide(asked)
    assert chosen is not None
    lines.append(f"gpus: 1, min_vram: 20GiB  ->  {chosen.node_id}: {why(chosen, DECIMALS)}")
    engine.take(chosen.node_id, asked, chosen.gpus)
    chosen = engine.decide(asked)
    assert chosen is not None
    lines.append(f"the same once more        ->  {chosen.node_id}: {why(chosen, DECIMALS)}")
    refused = replace(job(gpus=2, min_vram="48GiB"), price_limit=10**DECIMALS)
    told = explain(engine.fleet, refused, DECIMALS)
    lines.append(f"gpus: 2, min_vram: 48GiB, max_price_per_hour: 1  ->  {told.in_words}")
    for item in told.failures:
        line = f"    {item.constraint}: asked {item.asked}, removes {item.nodes_removed} of {told.considered}"
        if item.cheapest_without_it is not None:
            line += f"; without it {item.nodes_without_it} would do, from {format_amount(item.cheapest_without_it, DECIMALS)}/h"
        lines.append(line)
    return "\n".join(lines)


def test_the_page_shows_what_the_code_says() -> None:
    assert worked_example() in PAGE.read_text()


if __name__ == "__main__":
    print(worked_example())
