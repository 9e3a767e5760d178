"""Heartbeats of thousands of nodes, taken together: one transaction for all that came since the last one.

Most say that nothing has changed, and cost one UPDATE for all of them; so do those that were thought silent, for after an outage that is
everybody. Who has leases, or says something new, is looked at by itself (`nodes.on_heartbeat`). A heartbeat that is lost with this process costs nothing: the next one says the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import BigInteger, bindparam, select, update

from torg_marketplace.flow.nodes import on_heartbeat
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.among import among
from torg_marketplace.storage.models import LeaseRow, NodeRow
from torg_marketplace.storage.moves import revive_nodes
from torg_protocol.ids import NodeId
from torg_protocol.messages import Heartbeat
from torg_protocol.states import LIVE_LEASE_STATES, Liveness, NodeState

_AT_ONCE = 1_000  # nodes of one statement and one transaction


@dataclass
class Pulse:
    """The newest heartbeat of each node since the last `renew`. One per process."""

    _waiting: dict[NodeId, Heartbeat] = field(default_factory=dict)
    _since_ms: int = 0

    def beat(self, node_id: NodeId, heartbeat: Heartbeat, now_ms: int) -> None:
        if not self._waiting:
            self._since_ms = now_ms
        self._waiting[node_id] = heartbeat

    async def renew(self, market: Market) -> int:
        """Applies what waits; returns of how many nodes. They count as heard of when the first of them was."""
        waiting, since_ms = list(self._waiting.items()), self._since_ms
        self._waiting.clear()
        for start in range(0, len(waiting), _AT_ONCE):
            async with market.transaction() as unit:
                await _renew(unit, dict(waiting[start : start + _AT_ONCE]), since_ms)
        return len(waiting)


async def _renew(unit: Unit, beats: dict[NodeId, Heartbeat], since_ms: int) -> None:
    eventful, silent = await _eventful(unit, beats)
    if silent:
        await revive_nodes(unit.session, silent, at_ms=unit.now_ms)
        for node_id in silent:
            unit.touch(node_id)
        unit.wake("match")
    quiet = [node_id for node_id in beats if node_id not in eventful]
    if quiet:
        await unit.session.execute(_HEARD, {"nodes": quiet, "heard_ms": since_ms})
    for node_id in sorted(eventful):
        await on_heartbeat(unit, node_id, beats[node_id])


async def _eventful(unit: Unit, beats: dict[NodeId, Heartbeat]) -> tuple[set[NodeId], dict[NodeId, Liveness]]:
    """Who has to be looked at by itself; and of the others, who was thought silent."""
    asked = {"nodes": list(beats)}
    rows = await unit.session.execute(_BEATING, asked)
    found: set[NodeId] = set()
    silent: dict[NodeId, Liveness] = {}
    for node_id, state, liveness, gpus_out, suspensions in rows.all():
        beat = beats[NodeId(node_id)]
        if liveness != Liveness.ALIVE:
            silent[NodeId(node_id)] = Liveness(liveness)
        is_news = (
            beat.draining != (state == NodeState.DRAINING)
            or [*beat.gpus_out] != gpus_out
            or [each.wire() for each in beat.suspensions] != suspensions
        )
        if beat.leases or is_news:
            found.add(NodeId(node_id))
    found |= {NodeId(node_id) for node_id in await unit.session.scalars(_WORKING, asked)}
    return found, {node_id: before for node_id, before in silent.items() if node_id not in found}


_HEARD = (
    update(NodeRow)
    .where(among(NodeRow.node_id, "nodes"), NodeRow.last_seen_ms < bindparam("heard_ms", type_=BigInteger))
    .values(last_seen_ms=bindparam("heard_ms", type_=BigInteger))
    .execution_options(synchronize_session=False)
)
_BEATING = select(NodeRow.node_id, NodeRow.state, NodeRow.liveness, NodeRow.gpus_out, NodeRow.suspensions).where(
    among(NodeRow.node_id, "nodes")
)
_WORKING = (
    select(LeaseRow.node_id).where(LeaseRow.state.in_(LIVE_LEASE_STATES), among(LeaseRow.node_id, "nodes")).distinct()
)
