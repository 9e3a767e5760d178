"""Causes for which a node gets no new leases. They stand apart: it is suspended as long as one of them does, and who takes one back does not
take back another's. `NodeRow.suspensions` is written here alone."""

from __future__ import annotations

from typing import Literal

from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.events import add_node_event
from torg_marketplace.storage.models import NodeRow
from torg_marketplace.storage.moves import move_node
from torg_protocol.errors import Conflict
from torg_protocol.messages import Refused
from torg_protocol.states import NodeState
from torg_protocol.suspensions import NodeSuspended, Suspension, in_words

Cause = Literal["operator", "ban", "proof"]


def suspensions_of(node: NodeRow) -> tuple[Suspension, ...]:
    """Those that stand, oldest first."""
    return tuple(Suspension.model_validate(each) for each in node.suspensions)


def standing(node: NodeRow, cause: Cause) -> Suspension | None:
    return next((each for each in suspensions_of(node) if each.by == cause), None)


async def suspend(unit: Unit, node: NodeRow, cause: Cause, because: str) -> Suspension | None:
    """What stood already of this cause, and stays: nothing changed then."""
    if (stood := standing(node, cause)) is not None:
        return stood
    added = Suspension(by=cause, because=because[:2_000], since_ms=unit.now_ms)
    await _set(unit, node, (*suspensions_of(node), added), detail=f"by the {cause}: {because}")
    return None


async def release(unit: Unit, node: NodeRow, cause: Cause, because: str) -> None:
    """Takes one cause back. It is active again when that was the last."""
    left = tuple(each for each in suspensions_of(node) if each.by != cause)
    await _set(unit, node, left, detail=f"by the {cause}: {because}")


def tell_suspensions(unit: Unit, node: NodeRow) -> None:
    unit.send(node.id, NodeSuspended(suspensions=suspensions_of(node)))


def tell_older(unit: Unit, node: NodeRow) -> None:
    """Whose release does not know that message: it has this in its log, once for each connection."""
    hint = "it gets no new leases; ask the operator of the marketplace, and update torg-node, whose status tells more"
    told = Conflict(f"this node is suspended {in_words(suspensions_of(node))}", code="node_suspended", hint=hint)
    unit.send(node.id, Refused(problem=told.to_problem()))


async def _set(unit: Unit, node: NodeRow, stand: tuple[Suspension, ...], *, detail: str) -> None:
    node.suspensions = [each.wire() for each in stand]
    state = NodeState.SUSPENDED if stand else NodeState.ACTIVE
    if node.state != state:
        await move_node(unit.session, node, state, at_ms=unit.now_ms, detail=detail)
    else:
        data = {"suspensions": node.suspensions, "detail": detail}
        add_node_event(unit.session, node_id=node.id, data=data, at_ms=unit.now_ms)
    tell_suspensions(unit, node)
    unit.touch(node.id)
    unit.wake("match")
