"""A member of a gang joins its network when its container runs, and leaves it with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Handle
from torg_node.gang_addresses import address_of
from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason


@contextlib.asynccontextmanager
async def in_gang(lease: Lease, handle: Handle) -> AsyncIterator[None]:
    """For as long as the container runs. Raises LeaseEnded. After a restart of the agent the interface is made anew, and connections of the
    job go on."""
    place = lease.grant.gang
    if place is None:
        yield
        return
    from torg_node.gang_lines import GangLines  # with SSH, which other leases do not need
    from torg_node.gang_network import GangNetwork

    try:
        descriptor = await lease.node.executor.open_interface(handle, address_of(place.rank))
    except ExecutorError as error:
        if error.code != "not_running":
            raise LeaseEnded(EndReason.START_FAILED, f"the gang's network: {error.message}") from error
        yield  # it has ended already
        return
    is_elastic = lease.spec.gang is not None and lease.spec.gang.min_size is not None
    lease.gang_network = GangNetwork(descriptor, place.rank, place.size, is_elastic=is_elastic)
    for rank in lease.gang_left:
        lease.gang_network.leave(rank)
    settings = lease.node.settings
    lines = GangLines(settings.marketplace_url, lease.node.keypair, lease.id, place, lease.gang_network)
    dialling = asyncio.create_task(lines.run())
    try:
        yield
    finally:
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        lease.gang_network.close()
        lease.gang_network = None
