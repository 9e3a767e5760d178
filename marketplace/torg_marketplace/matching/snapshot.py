"""What the matcher knows: nodes with what is free on them, and what a job asks for."""

from __future__ import annotations

from dataclasses import dataclass

from torg_protocol.ids import NodeId
from torg_protocol.jobspec import JobSpec, Resources
from torg_protocol.offers import Offer
from torg_protocol.states import Liveness, NodeState


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    node_id: NodeId
    offer: Offer
    state: NodeState
    liveness: Liveness
    connected: bool
    units_in_use: frozenset[str] = frozenset()  # "gpu:0", "slot:2"
    cpu_millis_in_use: int = 0
    memory_in_use: int = 0
    disk_in_use: int = 0

    @property
    def gpus(self) -> int:
        return len(self.offer.inventory.gpus)

    def free_units(self, resources: Resources) -> list[str]:
        """Units of the kind that this job takes: GPUs, or slots when it wants none."""
        kind, count = ("gpu", self.gpus) if resources.gpus else ("slot", self.offer.slots)
        return [unit for unit in (f"{kind}:{number}" for number in range(count)) if unit not in self.units_in_use]

    @property
    def is_live(self) -> bool:
        return self.liveness is Liveness.ALIVE and self.connected


@dataclass(frozen=True, slots=True)
class Demand:
    """A job as the matcher sees it. `price_limit` is per GPU-hour: the client's cap for a quote, the job's ceiling later."""

    spec: JobSpec
    excluded: frozenset[NodeId] = frozenset()
    price_limit: int | None = None
    amount_limit: int | None = None  # what the job may cost at most

    @property
    def all_excluded(self) -> frozenset[str]:
        return self.excluded | frozenset(self.spec.excluded_nodes)


def units_needed(resources: Resources) -> int:
    return resources.billable_gpus
