"""Cancel: what it means depends on how far the job is.

QUEUED      cancelled at once, nothing is charged
LEASED      the container is stopped with grace; the job is cancelled when the lease has reported, useful seconds are billed
            (node not heard of: cancelled at once; the hold stays until the lease ends)
VERIFYING   too late: the work is done (Conflict already_reported); while only checkpoints are looked at: cancelled with the verdict on them
"""

from __future__ import annotations

from typing import assert_never

from torg_marketplace.flow.ending import end_queued
from torg_marketplace.flow.rows import job_of, live_leases, lock_attempts, node_row
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.views import view_of
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.moves import move_job
from torg_protocol.api import JobView
from torg_protocol.errors import Conflict
from torg_protocol.ids import AccountId, JobId
from torg_protocol.states import EndReason, JobState, Liveness


async def cancel(unit: Unit, account: AccountId, job_id: JobId) -> JobView:
    """Safe to repeat. Raises NotFound job_unknown, Conflict already_reported or job_ended."""
    job = await job_of(unit, account, job_id)
    state = JobState(job.state)
    match state:
        case JobState.QUEUED:
            _note_request(unit, job)
            await end_queued(unit, job, EndReason.CANCELLED)
        case JobState.LEASED:
            await _cancel_leased(unit, job)
        case JobState.VERIFYING if job.reason != EndReason.COMPLETED:
            _note_request(unit, job)
        case JobState.VERIFYING:
            raise Conflict(
                "the work is done and being verified; it will be billed",
                code="already_reported",
                field="job_id",
                value=job_id,
                hint="wait for the verdict: GET /v1/jobs/{job_id}?wait=60",
            )
        case JobState.CANCELLED:
            pass
        case JobState.SUCCEEDED | JobState.FAILED | JobState.EXPIRED | JobState.STOPPED:
            raise Conflict(
                f"the job has ended: {state}",
                code="job_ended",
                field="job_id",
                value=job_id,
                hint="nothing is left to stop, and it is billed no further; GET /v1/jobs/{job_id} has what it cost",
                state=state,
            )
        case _:
            assert_never(state)
    unit.wake(f"job:{job_id}")
    return await view_of(unit, job)


def _note_request(unit: Unit, job: JobRow) -> None:
    """Once: what is billed counts from the first time that its client asked."""
    if job.cancel_requested_at_ms is None:
        job.cancel_requested_at_ms = unit.now_ms


async def _cancel_leased(unit: Unit, job: JobRow) -> None:
    _note_request(unit, job)
    unreachable = False
    await lock_attempts(unit, job)
    for lease in await live_leases(unit, job_id=job.id):
        node = await node_row(unit, lease.node_id)
        unreachable = unreachable or node.liveness != Liveness.ALIVE
        # Whose gang has ended already stops for that, and is paid for what a checkpoint keeps.
        if lease.stop_reason != EndReason.GANG_ENDED:
            await stop_lease(unit, lease, job, EndReason.CANCELLED)
    if unreachable:
        detail = "the node is not heard of; what it did before may still be billed"
        await move_job(
            unit.session, job, JobState.CANCELLED, at_ms=unit.now_ms, reason=EndReason.CANCELLED, detail=detail
        )
