"""What a node's reputation rests on, for its owner and everybody: evidence alone, each change with its reason."""

from __future__ import annotations

from sqlalchemy import select

from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.proof import ProofRecord
from torg_marketplace.rules.reputation import reputation_permille
from torg_marketplace.storage.models import NodeEventRow
from torg_protocol.api import NodeReputation, ReputationChange
from torg_protocol.ids import NodeId

_LOOKED_AT, _SHOWN = 500, 50  # newest events, among them moves of state and liveness


async def node_reputation(unit: Unit, node_id: NodeId) -> NodeReputation:
    """Raises NotFound node_unknown. Evidence from before changes were kept counts and is not listed."""
    node = await node_row(unit, node_id)
    query = select(NodeEventRow).where(NodeEventRow.node_id == node_id).order_by(NodeEventRow.id.desc())
    events = (await unit.session.scalars(query.limit(_LOOKED_AT))).all()
    changes = [
        ReputationChange(
            at_ms=event.at_ms,
            lease_id=event.data["lease_id"],
            because=event.data["because"],
            was_permille=event.data["was"],
            now_permille=event.data["reputation"],
        )
        for event in events
        if "reputation" in event.data
    ]
    return NodeReputation(
        node=node_id,
        permille=reputation_permille(node.leases_kept, node.leases_broken),
        leases_kept=node.leases_kept,
        leases_broken=node.leases_broken,
        proof=ProofRecord.model_validate(node.proof).status(),
        changes=tuple(changes[:_SHOWN]),
    )
