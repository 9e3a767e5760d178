"""Who may have a tunnel to which node: members of a gang to each other; the job's client, to the node of its running lease (of a gang rank 0's), for as long as that lease lives."""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.flow.rows import attempt_of, grant_of, job_of, live_leases
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId
from torg_protocol.states import LIVE_LEASE_STATES, JobState, LeaseState

_HINTS = {
    JobState.QUEUED: "it waits for a node: torg show says for what",
    JobState.LEASED: "its node prepares it: try again in a moment",
}


@dataclass(frozen=True, slots=True)
class TunnelEnds:
    lease_id: LeaseId
    client: AccountId
    node: NodeId
    from_rank: int | None = None  # the member of its gang that wants to reach it; None: the job's client


async def tunnel_ends(unit: Unit, account: AccountId, job_id: JobId) -> TunnelEnds:
    """Raises NotFound job_unknown, also for somebody else's job, and Conflict job_not_running."""
    job = await job_of(unit, account, job_id)
    running = [lease for lease in await live_leases(unit, job_id=job_id) if lease.state == LeaseState.RUNNING]
    if not running:
        raise Conflict(
            f"the job does not run now (it is {job.state})",
            code="job_not_running",
            field="job_id",
            value=job_id,
            hint=_HINTS.get(JobState(job.state), "a tunnel lives as long as the job's container"),
        )
    first = min(running, key=lambda lease: lease.rank)
    return TunnelEnds(LeaseId(first.lease_id), account, NodeId(first.node_id))


async def peer_ends(unit: Unit, node: NodeId, lease_id: LeaseId, rank: int) -> TunnelEnds:
    """From a member of a gang to another one. Raises NotFound lease_unknown, also for somebody else's lease, and Conflict peer_not_there."""
    lease = await unit.session.get(LeaseRow, lease_id)
    if lease is None or lease.node_id != node or lease.size == 1:
        raise NotFound("no such lease of yours in a gang", code="lease_unknown", field="lease_id", value=lease_id)
    live = [each for each in await attempt_of(unit, lease) if each.state in LIVE_LEASE_STATES]
    peer = next((each for each in live if each.rank == rank and each is not lease), None)
    if peer is None or lease not in live:
        raise Conflict("that member has gone", code="peer_not_there", field="rank", value=rank)
    return TunnelEnds(peer.id, AccountId(grant_of(lease).client), peer.node, from_rank=lease.rank)


async def lease_lives(unit: Unit, lease_id: LeaseId) -> bool:
    lease = await unit.session.get(LeaseRow, lease_id)
    return lease is not None and lease.state in LIVE_LEASE_STATES
