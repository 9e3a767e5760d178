"""Stop: a node is told to end a lease with grace. What comes of it, its node says."""

from __future__ import annotations

from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.moves import move_lease
from torg_protocol.messages import Stop
from torg_protocol.states import EndReason, LeaseState


async def stop_lease(unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason) -> None:
    """Tells the node to stop, once; heartbeats repeat it. A later reason replaces an earlier one."""
    lease.stop_reason = reason
    if lease.state != LeaseState.STOPPING:
        lease.stop_requested_at_ms = unit.now_ms
        await move_lease(unit.session, lease, job, LeaseState.STOPPING, at_ms=unit.now_ms)
    send_stop(unit, lease)


def send_stop(unit: Unit, lease: LeaseRow) -> None:
    reason = EndReason(lease.stop_reason) if lease.stop_reason is not None else EndReason.CANCELLED
    grace_ms = unit.policy.preempt_grace_ms if reason is EndReason.PREEMPTED else unit.policy.stop_grace_ms
    stop = Stop(lease_id=lease.id, fence=lease.fence, reason=reason, grace_ms=grace_ms)
    unit.send(lease.node, stop)
