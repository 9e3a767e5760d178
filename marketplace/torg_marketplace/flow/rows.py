"""Loading: rows by id, the values inside them, and what is free on the nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import select

from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow, NodeRow
from torg_protocol.errors import NotFound
from torg_protocol.ids import AccountId, JobId, NodeId
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import Grant, SignedGrant
from torg_protocol.offers import Offer
from torg_protocol.states import LIVE_LEASE_STATES, Liveness, NodeState


async def job_of(unit: Unit, account: AccountId, job_id: JobId) -> JobRow:
    """Raises NotFound also for somebody else's job: its existence is nobody's business."""
    job = await unit.session.get(JobRow, job_id)
    if job is None or job.client != account:
        raise NotFound("no such job of yours", code="job_unknown", field="job_id", value=job_id)
    return job


async def job_row(unit: Unit, job_id: str) -> JobRow:
    return await unit.session.get_one(JobRow, job_id)


async def node_row(unit: Unit, node_id: str) -> NodeRow:
    node = await unit.session.get(NodeRow, node_id)
    if node is None:
        raise NotFound("no such node here", code="node_unknown", field="node_id", value=node_id)
    return node


async def live_leases(unit: Unit, *, node_id: NodeId | None = None, job_id: JobId | None = None) -> Sequence[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.state.in_(LIVE_LEASE_STATES)).order_by(LeaseRow.lease_id)
    if node_id is not None:
        query = query.where(LeaseRow.node_id == node_id)
    if job_id is not None:
        query = query.where(LeaseRow.job_id == job_id)
    return (await unit.session.scalars(query)).all()


async def leases_of_job(unit: Unit, job_id: str) -> Sequence[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.job_id == job_id).order_by(LeaseRow.attempt)
    return (await unit.session.scalars(query)).all()


def spec_of(job: JobRow) -> JobSpec:
    return JobSpec.model_validate(job.spec)


def grant_of(lease: LeaseRow) -> Grant:
    return signed_grant_of(lease).grant


def signed_grant_of(lease: LeaseRow) -> SignedGrant:
    return SignedGrant.model_validate(lease.grant)


def offer_of(node: NodeRow) -> Offer:
    return Offer.model_validate(node.offer)


def demand_of(job: JobRow) -> Demand:
    return Demand(
        spec=spec_of(job),
        excluded=frozenset(NodeId(node) for node in job.excluded_nodes),
        price_limit=job.price_ceiling,
        amount_limit=job.max_amount,
    )


async def node_snapshots(unit: Unit, *, only: NodeId | None = None) -> list[NodeSnapshot]:
    """Registered nodes (not suspended, heard of within `forget_node_after_ms`) with what is in use on them."""
    query = select(NodeRow).where(
        NodeRow.state != NodeState.SUSPENDED,
        NodeRow.last_seen_ms >= unit.now_ms - unit.policy.forget_node_after_ms,
    )
    if only is not None:
        query = query.where(NodeRow.node_id == only)
    nodes = (await unit.session.scalars(query.order_by(NodeRow.node_id))).all()
    units: dict[str, set[str]] = defaultdict(set)
    for row in await unit.session.scalars(select(AllocationRow)):
        units[row.node_id].add(row.unit)
    leases: dict[str, list[LeaseRow]] = defaultdict(list)
    for lease in await live_leases(unit, node_id=only):
        leases[lease.node_id].append(lease)
    return [_snapshot(node, frozenset(units[node.node_id]), leases[node.node_id]) for node in nodes]


def _snapshot(node: NodeRow, units: frozenset[str], leases: Sequence[LeaseRow]) -> NodeSnapshot:
    return NodeSnapshot(
        node_id=node.id,
        offer=offer_of(node),
        state=NodeState(node.state),
        liveness=Liveness(node.liveness),
        connected=node.connected,
        units_in_use=units,
        cpu_millis_in_use=sum(lease.cpu_millis for lease in leases),
        memory_in_use=sum(lease.memory_bytes for lease in leases),
        disk_in_use=sum(lease.disk_bytes for lease in leases),
    )
