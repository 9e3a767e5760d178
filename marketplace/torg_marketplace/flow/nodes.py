"""Nodes: they come with an offer and with the leases that their journal holds, are heard of, and go.

A hello squares what the node holds with what the database holds. Messages may get lost on the way to a node; hello and
heartbeats repeat what it has not reacted to, so a sent message never has to arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torg_chain.network import LOCALNET_PROGRAM_ID
from torg_marketplace.flow.collateral import note_collateral
from torg_marketplace.flow.ending import end_lease
from torg_marketplace.flow.leavers import remind_of_leavers
from torg_marketplace.flow.receipts import issued_receipt
from torg_marketplace.flow.refunds import remind_of_refunds
from torg_marketplace.flow.rows import job_row, live_leases, lock_attempt, node_row, signed_grant_of
from torg_marketplace.flow.settlement_plan import orders_in_flight
from torg_marketplace.flow.stopping import send_stop
from torg_marketplace.flow.suspension import suspensions_of, tell_older, tell_suspensions
from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.fleet import WARM_ITEMS
from torg_marketplace.rules.pricing import MAX_ACCEPTED_AMOUNT
from torg_marketplace.storage.models import LeaseRow, NodeRow
from torg_marketplace.storage.moves import move_node, set_liveness
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.messages import (
    Abandon,
    Granted,
    Heartbeat,
    HeldLease,
    Hello,
    LeaseDirective,
    OrderIssued,
    ReceiptIssued,
    Welcome,
)
from torg_protocol.offers import SignedOffer
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, LeaseState, Liveness, NodeState
from torg_protocol.tasks import BLOB_IMAGE
from torg_protocol.versions import is_spoken_in, version_of_connection


async def on_hello(unit: Unit, node_id: NodeId, hello: Hello) -> Welcome:
    """Registers or updates the node and its offer, and queues what it missed: grants, stops, receipts, orders.

    Raises Invalid (protocol_version_unknown, protocol_version_too_old, offer_invalid) or Conflict (offer_stale): the connection is refused then.
    """
    version = version_of_connection(hello.protocol_version)
    _check_offer(unit, node_id, hello.offer)
    node = await _register(unit, node_id, hello, version)
    unit.touch(node_id)
    await _set_draining(unit, node, draining=hello.draining)
    _set_gpus_out(unit, node, hello.gpus_out)
    held = {item.lease_id: item for item in hello.leases}
    await _square_database(unit, node_id, held)
    node.last_seen_ms = unit.now_ms  # not before: a lease that it has lost had worked until it was heard of last
    directives = [await _directive(unit, node_id, item) for item in hello.leases]
    for order in await orders_in_flight(unit, node_id):
        unit.send(node_id, OrderIssued(order=order))
    await remind_of_refunds(unit, node_id)
    if node.suspensions and not is_spoken_in("suspended", version):
        tell_older(unit, node)
    unit.wake("match")
    return Welcome(
        protocol_version=version,
        marketplace=unit.market.public_key,
        server_time_ms=unit.now_ms,
        heartbeat_ms=unit.policy.heartbeat_ms,
        fee_basis_points=unit.policy.fee_basis_points,
        leases=tuple(directives),
    )


async def on_heartbeat(unit: Unit, node_id: NodeId, heartbeat: Heartbeat) -> None:
    """Renews the node and all its leases, and repeats what it has not reacted to. Raises NotFound before a hello."""
    node = await node_row(unit, node_id)
    node.last_seen_ms = unit.now_ms
    if node.liveness != Liveness.ALIVE:
        unit.touch(node_id)
        unit.wake("match")
    await set_liveness(unit.session, node, Liveness.ALIVE, at_ms=unit.now_ms)
    await _set_draining(unit, node, draining=heartbeat.draining)
    _set_gpus_out(unit, node, heartbeat.gpus_out)
    if heartbeat.suspensions != suspensions_of(node):
        tell_suspensions(unit, node)
    held = {item.lease_id: item for item in heartbeat.leases}
    for lease in await live_leases(unit, node_id=node_id):
        _remind(unit, lease, held.get(lease.id))
        if lease.size > 1:
            await remind_of_leavers(unit, lease)
    for item in heartbeat.leases:
        if await _is_over_for(unit, node_id, item):
            unit.send(node_id, Abandon(lease_id=item.lease_id))
        else:  # one that was issued a moment ago is on its way
            await _repeat_receipt(unit, node_id, item, issued_before_ms=unit.now_ms - unit.policy.heartbeat_ms)


async def on_disconnect(unit: Unit, node_id: NodeId, since_ms: int | None = None) -> None:
    """No new leases until it is back. A newer connection of the same node, here or (than the one `since_ms`) to another process, makes
    this stale."""
    if node_id in unit.market.links.connected():
        return
    node = await node_row(unit, node_id)
    if since_ms is not None and (node.connected_at_ms or 0) > since_ms:
        return
    node.connected = False
    unit.touch(node_id)


def _check_offer(unit: Unit, node_id: NodeId, signed: SignedOffer) -> None:
    offer = signed.offer
    if offer.node != node_id or not signed.is_valid():
        raise Invalid(
            "the offer is not signed by this node", code="offer_invalid", field="offer.node", value=offer.node
        )
    if offer.marketplace != unit.market.public_key:
        raise Invalid(
            "the offer is for another marketplace",
            code="offer_invalid",
            field="offer.marketplace",
            value=offer.marketplace,
            hint=f"this one is {unit.market.public_key}",
        )
    if offer.price_per_gpu_hour > MAX_ACCEPTED_AMOUNT or offer.max_unpaid > MAX_ACCEPTED_AMOUNT:
        raise Invalid("an amount of the offer is too large", code="offer_invalid", field="offer.price_per_gpu_hour")
    if offer.inventory.source == "simulated" and unit.market.network.program_id != LOCALNET_PROGRAM_ID:
        raise Invalid(
            "simulated hardware is offered on a localnet only",
            code="offer_simulated",
            field="offer.inventory.source",
            value=offer.inventory.source,
            hint="the node's NVML library is a stand-in for tests: start it without",
        )


def _warm(known: Sequence[str], said: Sequence[str]) -> list[str]:
    """Of blobs and image archives the node knows best; which images of registries its engine has, it does not say."""
    elsewhere = [item for item in known if not item.startswith(("sha256:", BLOB_IMAGE))]
    return [*said, *elsewhere][:WARM_ITEMS]


async def _register(unit: Unit, node_id: NodeId, hello: Hello, version: int) -> NodeRow:
    offer, signature = hello.offer.offer, hello.offer.signature
    node = await unit.session.get(NodeRow, node_id, with_for_update=True)
    if node is None:
        node = NodeRow(
            node_id=node_id,
            state=NodeState.JOINING,
            liveness=Liveness.ALIVE,
            joined_at_ms=unit.now_ms,
            offer=offer.wire(),
            offer_signature=signature,
            offer_sequence=offer.sequence,
        )
        unit.session.add(node)
        named = None
    elif offer.sequence < node.offer_sequence or (offer.sequence == node.offer_sequence and offer.wire() != node.offer):
        raise Conflict(
            "a newer offer of this node is known",
            code="offer_stale",
            field="offer.sequence",
            value=offer.sequence,
            hint=f"sign the next one with a sequence above {node.offer_sequence}",
            offer_sequence=node.offer_sequence,
        )
    else:
        named = node.offer.get("collateral")
    if offer.collateral != named:
        await unit.session.flush()
        await note_collateral(unit, node_id, offer.collateral)
    node.offer, node.offer_signature, node.offer_sequence = offer.wire(), signature, offer.sequence
    node.node_version, node.protocol_version = hello.node_version[:64], version
    if hello.warm is not None:
        node.warm = _warm(node.warm or [], hello.warm)
    node.connected = True
    node.connected_at_ms = unit.now_ms
    if node.state == NodeState.JOINING:
        await unit.session.flush()
        await move_node(unit.session, node, NodeState.ACTIVE, at_ms=unit.now_ms)
    await set_liveness(unit.session, node, Liveness.ALIVE, at_ms=unit.now_ms)
    return node


async def _set_draining(unit: Unit, node: NodeRow, *, draining: bool) -> None:
    if draining != (node.state == NodeState.DRAINING):
        unit.touch(node.id)
    if draining and node.state == NodeState.ACTIVE:
        await move_node(unit.session, node, NodeState.DRAINING, at_ms=unit.now_ms, detail="asked by the node")
    elif not draining and node.state == NodeState.DRAINING:
        await move_node(unit.session, node, NodeState.ACTIVE, at_ms=unit.now_ms, detail="asked by the node")
        unit.wake("match")


def _set_gpus_out(unit: Unit, node: NodeRow, gpus_out: Sequence[str]) -> None:
    if node.gpus_out == [*gpus_out]:
        return
    node.gpus_out = [*gpus_out]
    unit.touch(node.id)
    unit.wake("match")


async def _square_database(unit: Unit, node_id: NodeId, held: Mapping[LeaseId, HeldLease]) -> None:
    """What we think that the node runs, against what it says. A lease that it had accepted and does not know any more is
    lost with its journal; one that it never heard of is sent again."""
    for lease in await live_leases(unit, node_id=node_id):
        if lease.size > 1 and not await lock_attempt(unit, lease):
            continue
        item = held.get(lease.id)
        if item is not None and item.fence != lease.fence:
            await end_lease(
                unit, lease, await job_row(unit, lease.job_id), EndReason.STALE, detail="held with another fence"
            )
        elif item is None and lease.acknowledged > 0:
            detail = "the node came back without this lease in its journal"
            await end_lease(unit, lease, await job_row(unit, lease.job_id), EndReason.NODE_LOST, detail=detail)
        else:
            _remind(unit, lease, item)
            if lease.size > 1:
                await remind_of_leavers(unit, lease)


def _remind(unit: Unit, lease: LeaseRow, item: HeldLease | None) -> None:
    """Repeats a grant that the node does not hold and a stop that it does not follow."""
    if item is None and lease.state == LeaseState.GRANTED:
        unit.send(lease.node, Granted(signed=signed_grant_of(lease)))
    if lease.state == LeaseState.STOPPING and (item is None or item.state != LeaseState.STOPPING):
        send_stop(unit, lease)


async def _directive(unit: Unit, node_id: NodeId, item: HeldLease) -> LeaseDirective:
    await _repeat_receipt(unit, node_id, item, issued_before_ms=unit.now_ms)
    lease = await unit.session.get(LeaseRow, item.lease_id)
    if lease is None or await _is_over_for(unit, node_id, item):
        return LeaseDirective(lease_id=item.lease_id, directive="abandon")
    return LeaseDirective(lease_id=item.lease_id, directive="continue", acknowledged=lease.acknowledged)


async def _repeat_receipt(unit: Unit, node_id: NodeId, item: HeldLease, *, issued_before_ms: int) -> None:
    """Of a lease that is decided and that the node still holds: it holds none of which it has the receipt."""
    lease = await unit.session.get(LeaseRow, item.lease_id)
    if lease is None or lease.node_id != node_id or lease.decided_at_ms is None:
        return
    if lease.decided_at_ms <= issued_before_ms and (receipt := await issued_receipt(unit, lease.lease_id)):
        unit.send(node_id, ReceiptIssued(receipt=receipt))


async def _is_over_for(unit: Unit, node_id: NodeId, item: HeldLease) -> bool:
    """Whether the node holds something that is not its own any more. A lease that it has reported or released stays its own
    until it has the receipt."""
    lease = await unit.session.get(LeaseRow, item.lease_id)
    if lease is None or lease.node_id != node_id or lease.fence != item.fence:
        return True
    return lease.state not in LIVE_LEASE_STATES and lease.reported_at_ms is None
