"""Grant: one job to one node, or to all nodes of a gang, for good or not at all.

The nodes' rows are claimed first, which serialises grants of one node; what the matcher saw is then checked again on fresh rows,
and the allocation's primary key is the last guard. Losing any of these rolls the whole transaction back, which several grants may share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import update

from torg_marketplace.flow.commitments import commit_lease
from torg_marketplace.flow.rows import (
    demand_of,
    leases_of_job,
    max_duration_ms_of,
    offer_of,
    snapshots_of,
    spec_of,
)
from torg_marketplace.flow.slowness import sold_as
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.volumes import take_volumes
from torg_marketplace.matching.constraints import Constraint, can_run, constraints
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.rules.money import split_budget
from torg_marketplace.rules.quorum import is_vote
from torg_marketplace.storage.among import among
from torg_marketplace.storage.events import add_lease_born
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow, NodeRow
from torg_marketplace.storage.moves import move_job
from torg_protocol.caps import Commitment, SignedCap
from torg_protocol.errors import Conflict
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.job_cost import verification_price, work_within
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import CheckpointRef, GangPlace, Grant, Granted, SignedGrant, VolumeAtStart
from torg_protocol.offers import Offer
from torg_protocol.states import EndReason, JobState, LeaseState


class NotGrantable(Conflict):
    """The node or the job changed since the matcher looked: match again."""

    default_code = "not_grantable"


class SameOwner(NotGrantable):
    """An owner of this node has handed over a replica of the job already: it joined, or changed its payout address, since then."""


class NothingLeft(Conflict):
    """The job has used up its time or its money: it ends for `reason`."""

    default_code = "nothing_left"

    def __init__(self, reason: EndReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def grant(unit: Unit, job: JobRow, nodes: Sequence[NodeId]) -> tuple[SignedGrant, ...]:
    """One attempt: a lease on each of these nodes, by rank, or nothing at all. Raises NotGrantable or MovedMeanwhile (somebody was faster),
    SameOwner, NothingLeft, what the vault refuses (its hold, closing), and Conflict `volume_busy`, `volume_gone`."""
    return await grant_on(unit, await claim_nodes(unit, nodes), job, nodes)


async def grant_on(unit: Unit, claims: Claims, job: JobRow, nodes: Sequence[NodeId]) -> tuple[SignedGrant, ...]:
    """As `grant`, on nodes that this transaction has claimed, for it and for other jobs; raises what it raises."""
    spec, demand = spec_of(job), demand_of(job, unit.now_ms)
    rules = constraints(demand, unit.policy.decimals)
    claimed = {node_id: _checked(unit, claims, node_id, demand, rules) for node_id in nodes}
    offers = [offer_of(claimed[node_id][0]) for node_id in nodes]
    _check_gang(spec, offers)
    if spec.replicas > 1:
        await _check_owners(unit, job, offers)
    prices = [claimed[node_id][1].offer.price_per_gpu_hour for node_id in nodes]
    limits = await _limits(unit, job, spec)
    job.generation += 1
    await move_job(unit.session, job, JobState.LEASED, at_ms=unit.now_ms)
    volumes = await take_volumes(unit, job, spec)
    shares = split_budget(limits.max_amount, prices)
    granted = []
    for rank, node_id in enumerate(nodes):
        units = claimed[node_id][1].units_for(demand)
        place = _Place(rank, tuple(nodes), shares[rank], volumes, units)
        granted.append(await _lease(unit, job, *claimed[node_id], place, limits))
        claims[node_id] = claims[node_id].taken(units, demand)
    unit.wake(f"job:{job.job_id}")
    return tuple(granted)


def _check_gang(spec: JobSpec, offers: Sequence[Offer]) -> None:
    regions = {offer.region for offer in offers}
    if len({offer.node for offer in offers}) != spec.nodes_at_once:
        raise NotGrantable(f"the job runs on {spec.nodes_at_once} node(s) at once", field="nodes", value=len(offers))
    if spec.gang is not None and spec.gang.same_region and len(regions) > 1:
        raise NotGrantable("these nodes are not in one region any more", field="gang.same_region", value=len(regions))


async def _check_owners(unit: Unit, job: JobRow, offers: Sequence[Offer]) -> None:
    """Of a quorum: nobody votes twice. Raises SameOwner."""
    voted = {lease.payout_address for lease in await leases_of_job(unit, job.job_id) if is_vote(lease.state)}
    if any(offer.payout_address in voted for offer in offers):
        raise SameOwner("its owner has handed over another replica of this job", field="nodes")


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a lease in its attempt. `max_amount`: its share of what the attempt may cost. `units`: what it gets of its node."""

    rank: int
    nodes: tuple[NodeId, ...]
    max_amount: int
    volumes: tuple[VolumeAtStart, ...]
    units: list[str]


async def _lease(
    unit: Unit, job: JobRow, node: NodeRow, snapshot: NodeSnapshot, place: _Place, limits: _Limits
) -> SignedGrant:
    spec = spec_of(job)
    lease_id = LeaseId(unit.new_id("lease"))
    commitment, commitment_signature, cap = await commit_lease(
        unit,
        vault=job.vault,
        lease_id=lease_id,
        payout_address=offer_of(node).payout_address,
        max_amount=place.max_amount + verification_price(spec, place.max_amount),
    )
    price = spec.resources.price_of(snapshot.offer.price_per_gpu_hour)
    signed = _sign(unit, job, node, price, place, limits, cap, commitment, commitment_signature)
    lease = _lease_row(unit, signed, spec)
    unit.session.add(lease)
    add_lease_born(unit.session, lease, at_ms=unit.now_ms)
    lease.sold_as = sold_as(node, place.units)
    for name in place.units:
        unit.session.write(AllocationRow, node_id=node.node_id, unit=name, lease_id=lease_id)
    unit.trace("match", job.job_id, job.queued_at_ms, lease_id=lease.lease_id)
    unit.trace("grant", job.job_id, unit.now_ms, lease_id=lease.lease_id, node=node.node_id)
    unit.touch(node.id, only_room=True)
    unit.send(node.id, Granted(signed=signed))
    return signed


_CLAIM = (
    update(NodeRow)
    .where(among(NodeRow.node_id, "claimed"))
    .values(claims=NodeRow.claims + 1)
    .returning(NodeRow)
    .execution_options(synchronize_session=False, populate_existing=True)
)
Claims = dict[NodeId, NodeSnapshot]  # of claimed nodes, with what this transaction has granted on them


async def claim_nodes(unit: Unit, nodes: Iterable[NodeId]) -> Claims:
    """Locks these nodes' room and reads what of it is free. Nodes that are not there, or are not registered any more, are left out."""
    rows = (await unit.session.scalars(_CLAIM, {"claimed": sorted(set(nodes))})).all()
    return {snapshot.node_id: snapshot for snapshot in await snapshots_of(unit, rows)}


def _checked(
    unit: Unit, claims: Claims, node_id: NodeId, demand: Demand, rules: Sequence[Constraint]
) -> tuple[NodeRow, NodeSnapshot]:
    node, snapshot = unit.known(NodeRow, node_id), claims.get(node_id)
    if snapshot is not None and demand.spec.spot:
        snapshot = snapshot.at_spot_price()
    if node is None or snapshot is None or not can_run(snapshot, rules):
        raise NotGrantable("the node cannot take this job any more", field="node_id", value=node_id)
    return node, snapshot


@dataclass(frozen=True, slots=True)
class _Limits:
    """What is left of the job's money and time for one more attempt. `max_amount` is for useful time: its verification is paid besides."""

    max_amount: int
    max_duration_ms: int
    attempt: int


async def _limits(unit: Unit, job: JobRow, spec: JobSpec) -> _Limits:
    leases = await leases_of_job(unit, job.job_id) if job.generation else ()
    amount = job.max_amount - sum(_price(spec, lease) for lease in leases)
    most_ms: dict[int, int] = defaultdict(int)  # of each attempt's leases, who was billed for longest
    for lease in leases:
        most_ms[lease.attempt] = max(most_ms[lease.attempt], lease.billed_ms)
    billed_ms = sum(most_ms.values())
    if spec.replicas > 1:  # each has its own share of money and all of the time
        amount, billed_ms = min(amount, job.max_amount // spec.replicas), 0
    # The cap was signed to outlive this moment; a lease must not.
    until_cap_ms = latest_lease_end_ms(spec, job.cap_from_ms, job.max_duration_ms) - spec.lease_grace - unit.now_ms
    max_duration_ms = max_duration_ms_of(job)
    if amount <= 0 < job.max_amount:
        raise NothingLeft(EndReason.BUDGET, "earlier attempts have used up what the job may cost")
    if billed_ms >= max_duration_ms:
        raise NothingLeft(EndReason.MAX_DURATION, "earlier attempts have used up the job's max_duration")
    if until_cap_ms <= 0:
        raise NothingLeft(EndReason.MAX_DURATION, "too late: the client's cap would expire before an attempt is paid")
    return _Limits(work_within(spec, amount), min(max_duration_ms - billed_ms, until_cap_ms), len(most_ms) + 1)


def _price(spec: JobSpec, lease: LeaseRow) -> int:
    """Of an earlier lease, with its verification also where that is not decided yet."""
    return lease.amount + (0 if lease.decided_at_ms is not None else verification_price(spec, lease.amount))


def _sign(
    unit: Unit,
    job: JobRow,
    node: NodeRow,
    price_per_gpu_hour: int,
    place: _Place,
    limits: _Limits,
    cap: SignedCap,
    commitment: Commitment,
    commitment_signature: str,
) -> SignedGrant:
    spec = spec_of(job)
    document = Grant(
        lease_id=commitment.lease_id,
        fence=job.generation,
        job_id=job.id,
        attempt=limits.attempt,
        client=job.account,
        node=node.id,
        marketplace=unit.market.public_key,
        spec=spec,
        price_per_gpu_hour=price_per_gpu_hour,
        billable_gpus=spec.resources.billable_gpus,
        max_amount=place.max_amount,
        max_duration_ms=limits.max_duration_ms,
        usage_interval_ms=unit.policy.usage_interval_ms,
        granted_at_ms=unit.now_ms,
        accept_within_ms=unit.policy.accept_within_ms,
        resume_from=CheckpointRef.model_validate(job.checkpoint) if job.checkpoint is not None else None,
        cap=cap,
        commitment=commitment,
        commitment_signature=commitment_signature,
        volumes=place.volumes,
        gang=GangPlace(rank=place.rank, size=len(place.nodes), nodes=place.nodes) if len(place.nodes) > 1 else None,
    )
    return SignedGrant(grant=document, signature=document.sign(unit.market.identity))


def _lease_row(unit: Unit, signed: SignedGrant, spec: JobSpec) -> LeaseRow:
    document = signed.grant
    return LeaseRow(
        lease_id=document.lease_id,
        job_id=document.job_id,
        node_id=document.node,
        attempt=document.attempt,
        rank=document.gang.rank if document.gang is not None else 0,
        size=document.gang.size if document.gang is not None else 1,
        fence=document.fence,
        state=LeaseState.GRANTED,
        grant=signed.wire(),
        price_per_gpu_hour=document.price_per_gpu_hour,
        billable_gpus=document.billable_gpus,
        max_amount=document.max_amount,
        max_duration_ms=document.max_duration_ms,
        payout_address=document.commitment.payout_address,
        spot=spec.spot,
        cpu_millis=spec.resources.cpus,
        memory_bytes=spec.resources.memory,
        disk_bytes=spec.resources.disk,
        granted_at_ms=unit.now_ms,
        grace_from_ms=unit.now_ms,
    )
