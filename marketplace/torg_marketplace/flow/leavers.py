"""Members that leave an elastic gang, which goes on without them (`rules/gangs.py` says when).

Their leases have ended; they are billed and get their receipts with the others, when the attempt ends. Those that go on lose what they did
since the newest checkpoint, where the job begins again, and are told who is gone: heartbeats repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from torg_marketplace.flow.rows import spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.usage import record_usage
from torg_marketplace.rules.gangs import Company, lost_since_checkpoint_ms, may_leave
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.messages import GangMembersLeft
from torg_protocol.states import Billing, EndReason, JobState, LeaseState


async def goes_on_without(
    unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason, leases: Sequence[LeaseRow]
) -> bool:
    """Whether the attempt's others go on; then what follows from it is done. `lease` has just ended for `reason`."""
    others = [each for each in leases if each is not lease and _is_with_it(each)]
    gang = spec_of(job).gang
    company = Company(
        min_size=gang.min_size if gang is not None else None,
        has_started=lease.useful_from_ms is not None,
        others=len(others),
    )
    if job.state != JobState.LEASED or job.cancel_requested_at_ms is not None:
        return False
    if not may_leave(lease.rank, reason, company):
        return False
    lost_before_ms = max((each.left_at_ms for each in leases if each.left_at_ms is not None), default=None)
    lease.left_at_ms = unit.now_ms
    gone = _ranks([each for each in leases if each.left_at_ms is not None])
    for each in others:
        if each.state == LeaseState.RUNNING:
            await _begin_again(unit, each, job, lost_before_ms)
            unit.send(each.node, GangMembersLeft(lease_id=each.id, fence=each.fence, ranks=gone))
    return True


async def remind_of_leavers(unit: Unit, lease: LeaseRow) -> None:
    """The node of a lease that goes on; what was told may have got lost."""
    if not lease.losses:  # whenever a member leaves, who goes on loses something: most gangs never ask
        return
    left = LeaseRow.job_id == lease.job_id, LeaseRow.attempt == lease.attempt, LeaseRow.left_at_ms.is_not(None)
    gone = (await unit.session.scalars(select(LeaseRow).where(*left))).all()
    if gone:
        unit.send(lease.node, GangMembersLeft(lease_id=lease.id, fence=lease.fence, ranks=_ranks(gone)))


async def _begin_again(unit: Unit, lease: LeaseRow, job: JobRow, lost_before_ms: int | None) -> None:
    """What is safe is recorded first: it stays so, whatever is lost."""
    await record_usage(unit, lease, job, Billing.CHECKPOINT, final=False)
    started_ms = lease.started_at_ms or unit.now_ms
    waited_ms = (lease.useful_from_ms or started_ms) - started_ms
    lost_ms = lost_since_checkpoint_ms(
        now_ms=unit.now_ms,
        started_ms=started_ms,
        kept_ms=max(lease.checkpoint_useful_ms, waited_ms),
        lost_before_ms=lost_before_ms,
    )
    lease.losses = [*lease.losses, [unit.now_ms, lost_ms]]


def _is_with_it(lease: LeaseRow) -> bool:
    return lease.state == LeaseState.RUNNING or lease.reason == EndReason.COMPLETED


def _ranks(leases: Sequence[LeaseRow]) -> tuple[int, ...]:
    return tuple(sorted(each.rank for each in leases))
