"""What the matcher is told: nodes with what is free on them, and what a job asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torg_protocol.features import Feature, features_asked, version_needed
from torg_protocol.ids import Digest, NodeId
from torg_protocol.jobspec import WHOLE_GPU_MILLI, JobSpec, Resources
from torg_protocol.offers import Offer
from torg_protocol.proofs import ProofStatus
from torg_protocol.states import Liveness, NodeState
from torg_protocol.versions import PROTOCOL_VERSION

WHOLE_MILLI = WHOLE_GPU_MILLI
UNPROVEN = ProofStatus()


@dataclass(frozen=True, slots=True)
class GpuShare:
    """A part of one GPU that a lease of `client` holds: time slices share memory, so only one client's leases meet there."""

    gpu: int
    milli: int
    client: str


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A MIG slice is a GPU of its own in the inventory; anybody may have it."""

    node_id: NodeId
    offer: Offer
    state: NodeState
    liveness: Liveness
    connected: bool
    units_in_use: frozenset[str] = frozenset()  # "gpu:0", "slot:2"; "gpu:1/0": a place on a GPU that is shared
    cpu_millis_in_use: int = 0
    memory_in_use: int = 0
    disk_in_use: int = 0
    shares: tuple[GpuShare, ...] = ()
    warm: frozenset[str] = frozenset()  # images and blob digests that are on its disk
    gpus_out: int = 0  # GPUs that nobody holds and that get no lease now: broken, or too hot
    reputation_permille: int = 1000  # share of its leases that it saw through
    proof: ProofStatus = UNPROVEN  # what proofs of its hardware established
    protocol_version: int = PROTOCOL_VERSION  # that it speaks

    def at_spot_price(self) -> NodeSnapshot | None:
        """The same node as the spot market sees it; None: it takes no spot jobs."""
        spot = self.offer.spot_price_per_gpu_hour
        if spot is None:
            return None
        at_spot = {"price_per_gpu_hour": spot, "spot_price_per_gpu_hour": None}
        return replace(self, offer=self.offer.model_copy(update=at_spot))

    def taken(self, units: Sequence[str], demand: Demand) -> NodeSnapshot:
        """The same node with a lease of this job on these units."""
        asked = demand.spec.resources
        shared = [unit for unit in units if "/" in unit]
        return replace(
            self,
            units_in_use=self.units_in_use.union(units),
            shares=self.shares + tuple(GpuShare(shared_gpu(unit), demand.gpu_milli, demand.client) for unit in shared),
            cpu_millis_in_use=self.cpu_millis_in_use + asked.cpus,
            memory_in_use=self.memory_in_use + asked.memory,
            disk_in_use=self.disk_in_use + asked.disk,
        )

    @property
    def proven_gops(self) -> int:
        """Of its slowest unit, 10^9 int8 operations per second; 0 unless proven."""
        return min((unit.gops for unit in self.proof.units), default=0) if self.proof.state == "proven" else 0

    @property
    def gpus(self) -> int:
        return len(self.offer.inventory.gpus)

    def free_units(self, resources: Resources) -> list[str]:
        """Units of the kind that this job takes: whole GPUs, or slots when it wants none."""
        return self.free_gpus() if resources.gpus else self._not_taken("slot", self.offer.slots)

    def free_gpus(self) -> list[str]:
        """Without `gpus_out`, and without those that are shared."""
        free = self._not_taken("gpu", self.gpus)
        return free[: max(0, len(free) - self.gpus_out)]

    def gpus_withheld(self) -> list[int]:
        """Numbers of `gpus_out`. Which of the free ones they are only the node knows, and it chooses: here they are the last ones."""
        taken = self._units_taken() if self.gpus_out else frozenset()
        free = [number for number in range(self.gpus) if f"gpu:{number}" not in taken]
        return free[max(0, len(free) - self.gpus_out) :]

    def _not_taken(self, kind: str, count: int) -> list[str]:
        taken = self._units_taken()
        return [unit for unit in (f"{kind}:{number}" for number in range(count)) if unit not in taken]

    def _units_taken(self) -> frozenset[str]:
        return self.units_in_use.union(f"gpu:{share.gpu}" for share in self.shares)

    def units_for(self, demand: Demand) -> list[str]:
        """Those that a lease would get; fewer than it needs where there are not as many. Of a shared GPU the first free place."""
        asked = demand.spec.resources
        if demand.gpu_milli == WHOLE_MILLI:
            return self.free_units(asked)[: units_needed(asked)]
        gpu = self._gpu_to_share(demand)
        places = () if gpu is None else (f"gpu:{gpu}/{place}" for place in range(WHOLE_MILLI))
        return [unit for unit in places if unit not in self.units_in_use][:1]

    def _gpu_to_share(self, demand: Demand) -> int | None:
        """Of those with room beside this client's leases alone the fullest, as the node's own ledger decides (`torg_node.allocation`)."""
        found: list[tuple[int, int]] = []
        for gpu in sorted({*range(self.gpus)}.difference(self.gpus_withheld())):
            there = [share for share in self.shares if share.gpu == gpu]
            free = 0 if f"gpu:{gpu}" in self.units_in_use else WHOLE_MILLI - sum(share.milli for share in there)
            if free >= demand.gpu_milli and all(share.client == demand.client for share in there):
                found.append((free, gpu))
        return min(found)[1] if found else None

    @property
    def is_live(self) -> bool:
        return self.liveness is Liveness.ALIVE and self.connected


@dataclass(frozen=True, slots=True)
class Demand:
    """A job as the matcher sees it. `price_limit` is per GPU-hour: the client's cap for a quote, the job's ceiling later."""

    spec: JobSpec
    excluded: frozenset[NodeId] = frozenset()
    paused: frozenset[NodeId] = frozenset()  # declined it lately: not now
    price_limit: int | None = None
    amount_limit: int | None = None  # what the job may cost at most, of a gang each node
    client: str = ""
    regions: frozenset[str] = frozenset()  # any, when empty
    min_reputation_permille: int = 0
    extended_to_ms: int | None = None  # how long it may last, when that is not what the spec says
    begins_with: tuple[Digest, ...] = ()  # what is in its volumes: such a blob may be on a node's disk already
    resumes_from: Digest | None = None  # the checkpoint that its next attempt is given
    features: tuple[Feature, ...] = field(init=False)  # that not every node's version of the protocol has
    protocol_version: int = field(init=False)  # the oldest that has them
    gpu_milli: int = field(init=False)  # less than a whole: a share of one GPU, among leases of this client alone
    gpu_classes: frozenset[str] = field(init=False)  # lower case; several are written "l40s|a100". Empty: any

    def __post_init__(self) -> None:
        asked = self.spec.resources.gpu_class
        classes = frozenset(part.strip().lower() for part in asked.split("|")) if asked is not None else frozenset()
        object.__setattr__(self, "gpu_classes", classes)
        object.__setattr__(self, "gpu_milli", self.spec.resources.gpu_fraction)
        brings = self.begins_with if self.resumes_from is None else (*self.begins_with, self.resumes_from)
        object.__setattr__(self, "features", features_asked(self.spec, brings))
        object.__setattr__(self, "protocol_version", version_needed(self.features))
        if self.gpu_milli < WHOLE_MILLI and not self.client:
            raise ValueError("client: a share of a GPU belongs to a named client")

    @property
    def max_duration_ms(self) -> int:
        return self.extended_to_ms or self.spec.limits.max_duration

    @property
    def all_excluded(self) -> frozenset[str]:
        return self.excluded | frozenset(self.spec.excluded_nodes)

    @property
    def only_on(self) -> frozenset[str] | None:
        """Nodes that may have it, where the client has named them or sealed secrets to them; None: any."""
        named, sealed = self.spec.placement.nodes, self.spec.secrets
        if sealed is None:
            return frozenset(named) or None
        return frozenset(sealed.nodes) & frozenset(named or sealed.nodes)

    @property
    def gpu_milli_in_all(self) -> int:
        return self.spec.resources.gpus * self.gpu_milli


def units_needed(resources: Resources) -> int:
    return resources.billable_gpus


def shared_gpu(unit: str) -> int:
    """The number of the GPU of which "gpu:0/2" is a place."""
    return int(unit.removeprefix("gpu:").partition("/")[0])
