"""Which part of this host a lease gets: decided purely, from what the host has and what other leases hold.

A unit is a whole GPU or a MIG slice of one. A unit belongs to one lease, or to time slices of one client's leases: slices share
memory without protection, so strangers never meet there. Jobs listen inside their own network namespace, so no lease takes a port
of the host and there are none to account for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torg_protocol.jobspec import JobSpec
from torg_protocol.offers import GpuInfo

WHOLE_MILLI = 1000  # a whole unit


class NoRoom(Exception):
    """This cannot be had now; the text says what is missing and, where somebody has it, who."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A logical processor and the NUMA node it belongs to (0 where the kernel names none)."""

    number: int
    numa_node: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this node may hand out. `numa_node_of` knows the NUMA node of a GPU where the kernel does."""

    gpus: tuple[GpuInfo, ...]
    cpus: tuple[Cpu, ...]
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int
    slots: int
    gpu_slices: int = 1  # how many leases of one client may share a GPU
    numa_node_of: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one lease asks for. `gpu_milli` below a whole: a time slice of one unit, beside leases of `client` only."""

    client: str
    gpus: int
    cpu_millis: int
    memory_bytes: int
    disk_bytes: int
    gpu_milli: int = WHOLE_MILLI
    min_vram: int | None = None
    min_compute_capability: str | None = None
    gpu_class: str | None = None  # as the job writes it, "l40s|a100"; a host may have several models

    @classmethod
    def of(cls, client: str, spec: JobSpec) -> Claim:
        asked = spec.resources
        return cls(
            client=client,
            gpus=asked.gpus,
            cpu_millis=asked.cpus,
            memory_bytes=asked.memory,
            disk_bytes=asked.disk,
            gpu_milli=asked.gpu_fraction,
            min_vram=asked.min_vram,
            min_compute_capability=asked.min_compute_capability,
            gpu_class=asked.gpu_class if asked.gpus else None,
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """`cpus`: cores that no other lease is pinned to; empty for a claim of no whole number of cores, which floats."""

    gpu_uuids: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation that stands. `node`: whose lease it is; several nodes may share one host."""

    lease_id: str
    node: str
    claim: Claim
    assignment: Assignment


def allocate(
    claim: Claim, capacity: Capacity, held: Sequence[Held], *, node: str, cordoned: Mapping[str, str]
) -> Assignment:
    """`cordoned`: reason by GPU uuid. Raises NoRoom. Equal arguments give equal answers."""
    others = "; another marketplace's leases hold a part" if any(item.node != node for item in held) else ""
    for name, asked, taken, most in (
        ("CPU (millis)", claim.cpu_millis, sum(item.claim.cpu_millis for item in held), capacity.cpu_millis),
        ("memory (bytes)", claim.memory_bytes, sum(item.claim.memory_bytes for item in held), capacity.memory_bytes),
        ("disk (bytes)", claim.disk_bytes, sum(item.claim.disk_bytes for item in held), capacity.disk_bytes),
    ):
        if asked > most - taken:
            raise NoRoom(f"{name}: {asked} asked, {max(0, most - taken)} of {most} free{others}")
    if not claim.gpus and sum(item.node == node and not item.claim.gpus for item in held) >= capacity.slots:
        raise NoRoom(f"all {capacity.slots} slots are taken")
    gpus = _gpus(claim, capacity, held, cordoned, others)
    near = capacity.numa_node_of.get(gpus[0]) if gpus else None
    return Assignment(gpus, _cpus(claim, capacity, held, near))


def may_keep(claim: Claim, gpu_uuids: Sequence[str], capacity: Capacity, held: Sequence[Held]) -> bool:
    """Whether a lease that runs on these GPUs meets nobody there but shares of its own client, with room for its own."""
    relatives = {gpu.uuid: _relatives(gpu, capacity) for gpu in capacity.gpus}
    for uuid in gpu_uuids:
        there = [item.claim for item in held if relatives.get(uuid, {uuid}) & set(item.assignment.gpu_uuids)]
        if there and (claim.gpu_milli == WHOLE_MILLI or any(other.client != claim.client for other in there)):
            return False
        if sum(other.gpu_milli for other in there) + claim.gpu_milli > WHOLE_MILLI:
            return False
    return True


def _gpus(
    claim: Claim, capacity: Capacity, held: Sequence[Held], cordoned: Mapping[str, str], others: str
) -> tuple[str, ...]:
    if not claim.gpus:
        return ()
    if claim.gpu_milli < WHOLE_MILLI:
        return (_time_slice(claim, capacity, held, cordoned),)
    busy = {uuid for item in held for uuid in item.assignment.gpu_uuids}
    fitting = [gpu for gpu in _usable(claim, capacity, cordoned) if not _relatives(gpu, capacity) & busy]
    # The smallest that do: the large ones stay for those who need them.
    fitting.sort(key=lambda gpu: (gpu.vram_bytes, _position(gpu, capacity)))
    chosen: list[str] = []
    for gpu in fitting:
        if len(chosen) < claim.gpus and not _relatives(gpu, capacity) & set(chosen):
            chosen.append(gpu.uuid)
    if len(chosen) < claim.gpus:
        raise NoRoom(f"{claim.gpus} GPUs asked, {len(chosen)} free that fit{_away(capacity, cordoned)}{others}")
    return tuple(chosen)


def _time_slice(claim: Claim, capacity: Capacity, held: Sequence[Held], cordoned: Mapping[str, str]) -> str:
    if capacity.gpu_slices == 1:
        raise NoRoom("this node shares no GPUs")
    if claim.gpu_milli < WHOLE_MILLI // capacity.gpu_slices:
        raise NoRoom(f"{claim.gpu_milli}/1000 of a GPU asked; this node cuts none into more than {capacity.gpu_slices}")
    if claim.gpus != 1:
        raise NoRoom("a time slice is of exactly one GPU")
    found: list[tuple[int, int, str]] = []
    for gpu in _usable(claim, capacity, cordoned):
        there = [item.claim for item in held if _relatives(gpu, capacity) & set(item.assignment.gpu_uuids)]
        free = WHOLE_MILLI - sum(other.gpu_milli for other in there)
        if free >= claim.gpu_milli and all(other.client == claim.client for other in there):
            found.append((free, _position(gpu, capacity), gpu.uuid))
    if not found:
        away = _away(capacity, cordoned)
        raise NoRoom(f"no GPU has {claim.gpu_milli}/1000 free that this client may share{away}")
    return min(found)[2]  # the fullest that still fits


def _usable(claim: Claim, capacity: Capacity, cordoned: Mapping[str, str]) -> Iterator[GpuInfo]:
    classes = None if claim.gpu_class is None else {name.strip().lower() for name in claim.gpu_class.split("|")}
    for gpu in capacity.gpus:
        if classes is not None and gpu.model.lower() not in classes:
            continue
        if gpu.uuid in cordoned or (gpu.mig_parent is not None and gpu.mig_parent in cordoned):
            continue
        if claim.min_vram is not None and gpu.vram_bytes < claim.min_vram:
            continue
        if claim.min_compute_capability is not None and not _at_least(
            gpu.compute_capability, claim.min_compute_capability
        ):
            continue
        yield gpu


def _relatives(gpu: GpuInfo, capacity: Capacity) -> set[str]:
    """What must be free with it: itself, the GPU that a slice is of, and the slices of a GPU (an owner may have cut it since)."""
    slices = {other.uuid for other in capacity.gpus if other.mig_parent == gpu.uuid}
    return {gpu.uuid, *slices, *([gpu.mig_parent] if gpu.mig_parent else [])}


def _position(gpu: GpuInfo, capacity: Capacity) -> int:
    return capacity.gpus.index(gpu)


def _away(capacity: Capacity, cordoned: Mapping[str, str]) -> str:
    """Physical GPUs of this node that take no work, and why."""
    own = dict.fromkeys(uuid for gpu in capacity.gpus for uuid in (gpu.uuid, gpu.mig_parent) if uuid in cordoned)
    reasons = ", ".join(f"{uuid} ({cordoned[uuid]})" for uuid in own if uuid is not None)
    return f"; out of service: {reasons}" if reasons else ""


def _cpus(claim: Claim, capacity: Capacity, held: Sequence[Held], near: int | None) -> tuple[int, ...]:
    """Whole cores get processors of their own, of one NUMA node where one has enough: the GPU's, else the fullest."""
    wanted, rest = divmod(claim.cpu_millis, 1000)
    pinned = {number for item in held for number in item.assignment.cpus}
    free = [cpu for cpu in capacity.cpus if cpu.number not in pinned]
    if rest or not wanted or wanted > len(free):
        return ()
    count: dict[int, int] = {}
    for cpu in free:
        count[cpu.numa_node] = count.get(cpu.numa_node, 0) + 1
    ordered = sorted(count, key=lambda numa: (count[numa] < wanted, numa != near, count[numa], numa))
    free.sort(key=lambda cpu: (ordered.index(cpu.numa_node), cpu.number))
    return tuple(sorted(cpu.number for cpu in free[:wanted]))


def _at_least(has: str | None, wanted: str) -> bool:
    return has is not None and tuple(map(int, has.split("."))) >= tuple(map(int, wanted.split(".")))
