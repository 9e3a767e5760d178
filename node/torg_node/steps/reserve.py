"""Reserve: GPUs, slot, cores, memory and disk of this host, for this lease alone."""

from __future__ import annotations

import logging

from torg_node.allocation import NoRoom
from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason

log = logging.getLogger(__name__)


class Reserve:
    name = "reserve"

    async def do(self, lease: Lease) -> None:
        """After a restart of the agent this finds what the lease had. Where the ledger has forgotten it, since its owner has named another
        file or lost it, the lease keeps the GPUs that its container has; or ends, when somebody was given one of them meanwhile."""
        node = lease.node
        if (gpu_uuids := node.journal.started_on(lease.id)) is not None:
            if not node.reservations.adopt(lease.id, lease.claim, gpu_uuids):
                log.error("%s: the host's ledger gave its GPUs to somebody else: it ends", lease.id)
                lease.request_stop(EndReason.HOST_PROTECTION, 0)
            return
        try:
            node.reservations.reserve(lease.id, lease.claim)
        except NoRoom as error:
            raise LeaseEnded(EndReason.START_FAILED, str(error)) from error

    async def undo(self, lease: Lease) -> None:
        lease.node.reservations.release(lease.id)
