"""Reserve: GPUs, slot, CPU, memory and disk of this host, for this lease alone."""

from __future__ import annotations

from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason


class Reserve:
    name = "reserve"

    async def do(self, lease: Lease) -> None:
        if lease.node.reservations.reserve(lease.id, lease.spec.resources) is None:
            raise LeaseEnded(EndReason.START_FAILED, lease.node.reservations.why_not(lease.spec.resources) or "no room")

    async def undo(self, lease: Lease) -> None:
        lease.node.reservations.release(lease.id)
