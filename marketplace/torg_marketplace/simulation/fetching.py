"""What a simulated node fetches before it starts: all that its grant names is there for it, as the API would serve it."""

from __future__ import annotations

from torg_marketplace.flow.blobs import may_read_blob
from torg_marketplace.simulation.tables import LIVE
from torg_marketplace.simulation.world import World
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import Grant


async def fetch_inputs(world: World, node_id: NodeId, grant: Grant) -> None:
    """Raises AssertionError when the lease goes on, as far as the marketplace knows, and something of it cannot be had."""
    named = [grant.spec.workspace, *(volume.blob for volume in grant.volumes)]
    if grant.resume_from is not None:
        named.append(grant.resume_from.blob)
    blobs: list[BlobRef] = [blob for blob in named if blob is not None]
    query = "SELECT state FROM leases WHERE lease_id = ?"
    if not blobs or world.database.execute(query, (grant.lease_id,)).fetchone()[0] not in LIVE:
        return
    async with world.market.reading() as unit:
        for blob in blobs:
            if not await may_read_blob(unit, node_id, blob.digest):
                raise AssertionError(f"{node_id} may not read {blob.digest}, which {grant.lease_id} begins with")
            if blob.digest not in world.blobs.stored:
                raise AssertionError(f"{blob.digest}, which {grant.lease_id} begins with, is not stored any more")
