"""Claims useful time, signed by this node."""

from __future__ import annotations

from torg_node.lease import Lease
from torg_node.metering import next_record
from torg_protocol.messages import UsageClaimed


async def claim_usage(lease: Lease, started_at_ms: int, until_ms: int, *, final: bool) -> None:
    """Says what is not countersigned yet; nothing when there is nothing."""
    countersigned = lease.node.journal.usage(lease.id)
    record = next_record(lease.grant, countersigned, started_at_ms=started_at_ms, until_ms=until_ms, final=final)
    if record.useful_ms > 0:
        await lease.say(UsageClaimed(record=record, node_signature=record.sign(lease.node.keypair)))
