"""Loading: rows by id, the values inside them, and what is free on the nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Select,
    String,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    union_all,
)

from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.snapshot import Demand, GpuShare, NodeSnapshot, shared_gpu
from torg_marketplace.rules.proof import ProofRecord
from torg_marketplace.rules.quorum import vote_of
from torg_marketplace.rules.reputation import reputation_permille
from torg_marketplace.storage.among import among
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow, NodeRow
from torg_protocol.errors import NotFound
from torg_protocol.ids import AccountId, Digest, JobId, NodeId
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import CheckpointRef, Grant, SignedGrant
from torg_protocol.offers import Offer
from torg_protocol.states import LIVE_LEASE_STATES, Liveness, NodeState

_NO_JOB = "GET /v1/jobs and `torg ps -a` list yours; one of another account is not shown"
_NO_NODE = "GET /v1/offers and `torg offers` list those that are here"
K = TypeVar("K")
V = TypeVar("V")
_READ_KEPT = 4_096  # of each kind
_specs: dict[str, JobSpec] = {}  # by digest, oldest first
_offers: dict[tuple[str, str], Offer] = {}  # by node and signature, oldest first


async def job_of(unit: Unit, account: AccountId, job_id: JobId) -> JobRow:
    """Raises NotFound also for somebody else's job: its existence is nobody's business."""
    job = await unit.session.get(JobRow, job_id)
    if job is None or job.client != account:
        raise NotFound("no such job of yours", code="job_unknown", field="job_id", value=job_id, hint=_NO_JOB)
    return job


async def job_row(unit: Unit, job_id: str) -> JobRow:
    return await unit.session.get_one(JobRow, job_id)


async def node_row(unit: Unit, node_id: str) -> NodeRow:
    node = await unit.session.get(NodeRow, node_id)
    if node is None:
        raise NotFound("no such node here", code="node_unknown", field="node_id", value=node_id, hint=_NO_NODE)
    return node


async def live_leases(unit: Unit, *, node_id: NodeId | None = None, job_id: JobId | None = None) -> Sequence[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.state.in_(LIVE_LEASE_STATES)).order_by(LeaseRow.lease_id)
    if node_id is not None:
        query = query.where(LeaseRow.node_id == node_id)
    if job_id is not None:
        query = query.where(LeaseRow.job_id == job_id)
    return (await unit.session.scalars(query)).all()


async def attempt_of(unit: Unit, lease: LeaseRow) -> Sequence[LeaseRow]:
    """All leases of its attempt, itself included, by rank. Of a lease by itself no question is asked."""
    if lease.size == 1:
        return [lease]
    mine = LeaseRow.job_id == lease.job_id, LeaseRow.attempt == lease.attempt
    return (await unit.session.scalars(select(LeaseRow).where(*mine).order_by(LeaseRow.rank))).all()


def vote_on(lease: LeaseRow) -> Digest:
    """What this replica of a quorum says."""
    return vote_of(lease.outputs, lease.ended_for, lease.exit_code)


async def lock_job(unit: Unit, job_id: str) -> JobRow:
    """Whoever decides about an attempt of several leases takes the job's row first, then touches the leases: two who decide about two of
    them at once would otherwise each miss what the other wrote."""
    return await unit.session.get_one(JobRow, job_id, with_for_update=True, populate_existing=True)


async def lock_attempt(unit: Unit, lease: LeaseRow) -> bool:
    """As `lock_job`, for a lease of several. False when the lease has ended meanwhile, or before."""
    if lease.size > 1:
        await lock_job(unit, lease.job_id)
        await unit.session.refresh(lease)
    return lease.ended_at_ms is None


async def lock_attempts(unit: Unit, job: JobRow) -> None:
    """As `lock_job`, if an attempt of this job has several leases. Call before its leases are loaded."""
    several = select(LeaseRow.lease_id).where(LeaseRow.job_id == job.job_id, LeaseRow.size > 1).limit(1)
    if await unit.session.scalar(several) is not None:
        await lock_job(unit, job.job_id)


_BY_THEMSELVES = (
    select(LeaseRow, JobRow, NodeRow)
    .join(JobRow, JobRow.job_id == LeaseRow.job_id)
    .join(NodeRow, NodeRow.node_id == LeaseRow.node_id)
    .where(among(LeaseRow.lease_id, "lease_ids"), LeaseRow.size == 1)
    .with_for_update(of=LeaseRow)
)


async def lease_to_change(unit: Unit, lease_id: str) -> LeaseRow | None:
    """A lease, locked: by its own row, or by its job's when its attempt has several."""
    lease = unit.known(LeaseRow, lease_id)  # read ahead, or by something before in this transaction
    if lease is None:
        await read_leases(unit, [lease_id])
        lease = unit.known(LeaseRow, lease_id)
    if lease is None and (lease := await unit.session.get(LeaseRow, lease_id)) is not None:
        await lock_attempt(unit, lease)
    return lease


async def read_leases(unit: Unit, lease_ids: Collection[str]) -> None:
    """Those that are by themselves, locked, with their jobs and nodes, which whoever changes them asks for next."""
    with unit.session.no_autoflush:  # what was changed of other leases may wait
        (await unit.session.execute(_BY_THEMSELVES, {"lease_ids": list(lease_ids)})).all()


async def has_live_lease(unit: Unit, job: JobRow) -> bool:
    """As this transaction knows them: one that it has just ended is no more, and nothing need be written to see that."""
    known = [lease for lease in unit.loaded(LeaseRow) if lease.job_id == job.job_id]
    if any(lease.state in LIVE_LEASE_STATES for lease in known):
        return True
    if job.generation == len({lease.fence for lease in known}) and all(lease.size == 1 for lease in known):
        return False  # each generation was one lease, and here they all are
    query = select(LeaseRow).where(LeaseRow.state.in_(LIVE_LEASE_STATES), LeaseRow.job_id == job.job_id)
    with unit.session.no_autoflush:
        stored = (await unit.session.scalars(query)).all()
    return any(lease.state in LIVE_LEASE_STATES for lease in stored)


async def leases_of_job(unit: Unit, job_id: str) -> Sequence[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.job_id == job_id).order_by(LeaseRow.attempt, LeaseRow.rank)
    return (await unit.session.scalars(query)).all()


def known_spec(digest: str) -> JobSpec | None:
    """One that was read lately, without its job's row."""
    return _specs.get(digest)


def spec_of(job: JobRow) -> JobSpec:
    """A spec never changes, and is asked for at every step of its job."""
    spec = known_spec(job.spec_digest)
    if spec is None:
        spec = JobSpec.model_validate(job.spec)
        _keep(_specs, job.spec_digest, spec)
    return spec


def _keep(kept: dict[K, V], name: K, value: V) -> None:
    """Of those that were read last."""
    kept[name] = value
    if len(kept) > _READ_KEPT:
        del kept[next(iter(kept))]


def grant_of(lease: LeaseRow) -> Grant:
    return signed_grant_of(lease).grant


def resumed_from(lease: LeaseRow) -> CheckpointRef | None:
    """As its grant says, which need not be read as a whole for that."""
    checkpoint = lease.grant["grant"]["resume_from"]
    return None if checkpoint is None else CheckpointRef.model_validate(checkpoint)


def signed_grant_of(lease: LeaseRow) -> SignedGrant:
    return SignedGrant.model_validate(lease.grant)


def offer_of(node: NodeRow) -> Offer:
    """What a node has signed once stays as it is, and is asked for by every look at the node."""
    name = node.node_id, node.offer_signature
    offer = _offers.get(name)
    if offer is None:
        offer = Offer.model_validate(node.offer)
        _keep(_offers, name, offer)
    return offer


def demand_of(job: JobRow, now_ms: int) -> Demand:
    excluded = frozenset(NodeId(node) for node in job.excluded_nodes)
    paused = frozenset(NodeId(node) for node, pause in job.paused_nodes.items() if pause["until_ms"] > now_ms)
    demand = demand_for(spec_of(job), job.client, job.price_ceiling, job.max_amount, excluded, paused)
    if job.max_duration_ms is None and job.checkpoint is None:
        return demand
    resumes_from = None if job.checkpoint is None else Digest(job.checkpoint["blob"]["digest"])
    return replace(demand, extended_to_ms=job.max_duration_ms, resumes_from=resumes_from)


def max_duration_ms_of(job: JobRow) -> int:
    """In all attempts together."""
    return job.max_duration_ms or spec_of(job).limits.max_duration


def next_pause_over_ms(job: JobRow, now_ms: int) -> int | None:
    """Until when `demand_of` stays as it is now; None: for good."""
    return min((pause["until_ms"] for pause in job.paused_nodes.values() if pause["until_ms"] > now_ms), default=None)


def demand_for(
    spec: JobSpec,
    client: str,
    price_limit: int | None,
    amount_limit: int | None,
    excluded: frozenset[NodeId] = frozenset(),
    paused: frozenset[NodeId] = frozenset(),
) -> Demand:
    """What a spec asks of nodes, the same for a quote and for a job."""
    return Demand(
        spec=spec,
        excluded=excluded,
        paused=paused,
        price_limit=price_limit,
        amount_limit=None if amount_limit is None else -(-amount_limit // spec.nodes_at_once),
        client=client,
        regions=frozenset(spec.placement.regions),
        min_reputation_permille=10 * spec.placement.min_reliability_percent,
    )


async def node_snapshots(unit: Unit, *, only: Collection[NodeId] | None = None) -> list[NodeSnapshot]:
    """Registered nodes with what is in use on them; of `only`, those that are registered."""
    asked, which = (_ALL, {}) if only is None else (_SOME, {"nodes": list(only)})
    since_ms = unit.now_ms - unit.policy.forget_node_after_ms
    nodes = (await unit.session.scalars(asked.registered, {"since_ms": since_ms, **which})).all()
    return await _snapshots(unit, nodes, asked, which)


async def snapshots_of(unit: Unit, nodes: Iterable[NodeRow]) -> list[NodeSnapshot]:
    """Of rows that were read in this transaction; without those that are not registered."""
    since_ms = unit.now_ms - unit.policy.forget_node_after_ms
    registered = [node for node in nodes if node.state != NodeState.SUSPENDED and node.last_seen_ms >= since_ms]
    return await _snapshots(unit, registered, _SOME, {"nodes": [node.node_id for node in registered]})


@dataclass(frozen=True, slots=True)
class _Questions:
    """About nodes, built once. Parameters: `since_ms` for those registered, and which nodes where not all are meant."""

    registered: Select[NodeRow]
    # Of each node, who has which unit; and, in lines without one, processors, memory and disk of its leases.
    in_use: CompoundSelect[Any]


async def _snapshots(
    unit: Unit, nodes: Sequence[NodeRow], asked: _Questions, which: Mapping[str, Any]
) -> list[NodeSnapshot]:
    units: dict[str, dict[str, str]] = defaultdict(dict)
    in_use: dict[str, tuple[int, ...]] = {}
    for node_id, name, lease_id, *of_leases in await unit.session.execute(asked.in_use, which):
        if name is None:
            in_use[node_id] = tuple(map(int, of_leases))
        else:
            units[node_id][name] = lease_id
    grants = await _grants_of_shares(unit, units.values())
    idle_out = await _idle_gpus_out(unit, nodes)
    return [
        _snapshot(node, units[node.node_id], in_use.get(node.node_id, (0, 0, 0)), grants, idle_out.get(node.node_id, 0))
        for node in nodes
    ]


def _questions(*, of_all: bool) -> _Questions:
    nothing, zero = cast(null(), String), literal_column("0", BigInteger)
    allocations = select(AllocationRow.node_id, AllocationRow.unit, AllocationRow.lease_id, zero, zero, zero)
    of_leases = (func.sum(LeaseRow.cpu_millis), func.sum(LeaseRow.memory_bytes), func.sum(LeaseRow.disk_bytes))
    leases = select(LeaseRow.node_id, nothing, nothing, *of_leases).where(LeaseRow.state.in_(LIVE_LEASE_STATES))
    nodes = select(NodeRow).where(*registered_since(bindparam("since_ms", type_=BigInteger)))
    if not of_all:
        allocations = allocations.where(among(AllocationRow.node_id, "nodes"))
        leases, nodes = leases.where(among(LeaseRow.node_id, "nodes")), nodes.where(among(NodeRow.node_id, "nodes"))
    return _Questions(nodes.order_by(NodeRow.node_id), union_all(allocations, leases.group_by(LeaseRow.node_id)))


def registered_since(since_ms: int | ColumnElement[int]) -> tuple[ColumnElement[bool], ...]:
    """Of nodes that count: not suspended, and heard of since then, `forget_node_after_ms` ago."""
    return NodeRow.state != NodeState.SUSPENDED, NodeRow.last_seen_ms >= since_ms


_ALL, _SOME = _questions(of_all=True), _questions(of_all=False)


def _snapshot(
    node: NodeRow, units: Mapping[str, str], in_use: tuple[int, ...], grants: Mapping[str, Grant], gpus_out: int
) -> NodeSnapshot:
    """`units`: who has which."""
    cpu_millis, memory, disk = in_use
    return NodeSnapshot(
        node_id=node.id,
        offer=offer_of(node),
        state=NodeState(node.state),
        liveness=Liveness(node.liveness),
        connected=node.connected,
        units_in_use=frozenset(units),
        shares=_shares(units, grants),
        cpu_millis_in_use=cpu_millis,
        memory_in_use=memory,
        disk_in_use=disk,
        warm=frozenset(node.warm),
        reputation_permille=reputation_permille(node.leases_kept, node.leases_broken),
        proof=ProofRecord.model_validate(node.proof).status(),
        protocol_version=node.protocol_version,
        gpus_out=gpus_out,
    )


async def _grants_of_shares(unit: Unit, units: Iterable[Mapping[str, str]]) -> dict[str, Grant]:
    """By lease, of those that hold a part of a GPU ("gpu:0/2"): how large it is, only the grant says."""
    holding = {lease_id for held in units for name, lease_id in held.items() if "/" in name}
    if not holding:
        return {}
    query = select(LeaseRow).where(LeaseRow.state.in_(LIVE_LEASE_STATES), LeaseRow.lease_id.in_(holding))
    return {lease.lease_id: grant_of(lease) for lease in await unit.session.scalars(query)}


async def _idle_gpus_out(unit: Unit, nodes: Sequence[NodeRow]) -> dict[str, int]:
    """By node, where there are any: how many of the GPUs that get no new lease are not what a lease holds, whose unit is in use anyway."""
    out = {node.node_id: set(node.gpus_out) for node in nodes if node.gpus_out}
    if out:
        query = select(LeaseRow.node_id, LeaseRow.gpu_uuids).where(
            LeaseRow.state.in_(LIVE_LEASE_STATES), LeaseRow.node_id.in_(out)
        )
        for node_id, gpu_uuids in await unit.session.execute(query):
            out[node_id] -= set(gpu_uuids)
    return {node_id: len(idle) for node_id, idle in out.items()}


def _shares(units: Mapping[str, str], grants: Mapping[str, Grant]) -> tuple[GpuShare, ...]:
    """What leases hold of shared GPUs, as their grants say."""
    return tuple(
        GpuShare(shared_gpu(name), grants[lease_id].spec.resources.gpu_fraction, grants[lease_id].client)
        for name, lease_id in sorted(units.items())
        if "/" in name and lease_id in grants
    )
