"""Reserve: GPUs, slot, cores, memory and disk of this host, for this lease alone."""

from __future__ import annotations

from torg_node.allocation import NoRoom
from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason


class Reserve:
    name = "reserve"

    async def do(self, lease: Lease) -> None:
        """After a restart of the agent this finds what the lease had."""
        try:
            lease.node.reservations.reserve(lease.id, lease.claim)
        except NoRoom as error:
            raise LeaseEnded(EndReason.START_FAILED, str(error)) from error

    async def undo(self, lease: Lease) -> None:
        lease.node.reservations.release(lease.id)
