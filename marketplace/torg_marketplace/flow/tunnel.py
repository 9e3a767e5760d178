"""Who may have a tunnel to which node: the job's client, to the node of its running lease (of a gang rank 0's), for as long as that lease lives."""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.flow.rows import job_of, live_leases
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.errors import Conflict
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


async def lease_lives(unit: Unit, lease_id: LeaseId) -> bool:
    lease = await unit.session.get(LeaseRow, lease_id)
    return lease is not None and lease.state in LIVE_LEASE_STATES
