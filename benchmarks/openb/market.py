"""The trace in the market's words: what the matching engine is given is what it would be given by real nodes and jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from benchmarks.openb.trace import Pod, TraceNode, without_times
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.quantities import format_cpu_millis
from torg_protocol.states import Liveness, NodeState

DECIMALS = 6
PRICE = 10**DECIMALS  # everybody asks the same: what is measured is packing
_MIB = 1 << 20
_LEAST_MIB = 16  # a job spec asks for at least this; a few pods ask for none
_CLIENT = "the trace's tenant"  # one: time slices of a GPU are shared among one client's leases


def snapshots(cluster: Sequence[TraceNode], seed: int) -> Iterator[NodeSnapshot]:
    """Equal prices are tried in the order of a hash of the id: the seed in it permutes the nodes."""
    for node in cluster:
        name = NodeId(f"{seed}-{node.name}")
        yield NodeSnapshot(name, _offer(node), NodeState.ACTIVE, Liveness.ALIVE, connected=True)


@cache
def _offer(node: TraceNode) -> Offer:
    gpus = tuple(
        GpuInfo(uuid=f"{node.name}-{number}", model=node.model, vram_bytes=1 << 30) for number in range(node.gpus)
    )
    return Offer(
        node=NodeId(node.name),
        sequence=1,
        marketplace="benchmark",
        price_per_gpu_hour=PRICE,
        slots=256,
        inventory=Inventory(
            source="simulated",
            gpu_class=node.model,
            gpus=gpus,
            cpu_millis=node.cpu_milli,
            memory_bytes=node.memory_mib * _MIB,
            disk_bytes=1 << 50,
        ),
        executor="fake",
        isolation=("sandbox",),
        payout_address="benchmark",
        max_unpaid=10**15,
        gpu_slices=100,
    )


def demand(pod: Pod) -> Demand:
    return _demand(without_times(pod))


@cache
def _demand(pod: Pod) -> Demand:
    resources = {
        "cpus": format_cpu_millis(pod.cpu_milli),
        "memory": f"{max(pod.memory_mib, _LEAST_MIB)}MiB",
        "gpus": pod.gpus,
    }
    if pod.models:
        resources["gpu_class"] = "|".join(sorted(pod.models))
    if pod.gpus == 1:
        resources["gpu_fraction"] = format_cpu_millis(pod.gpu_milli)
    spec = load_job_spec({"version": 1, "command": ["x"], "resources": resources})
    return Demand(spec=spec, client=_CLIENT)
