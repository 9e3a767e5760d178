"""The doors of the gateway: the client's, the node's, and that of members of a gang. See torg_protocol.tunnels for what is said on them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from torg_marketplace.api.auth import dialling_party
from torg_marketplace.api.context import Edge, edge_of
from torg_marketplace.flow.tunnel import TunnelEnds, lease_lives, peer_ends, tunnel_ends
from torg_marketplace.flow.unit import Unit
from torg_marketplace.gateway.relay import NODE_WITHIN_S, Tunnels, close_quietly
from torg_protocol.errors import TorgError, Unavailable
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId
from torg_protocol.messages import OpenTunnel
from torg_protocol.tunnels import TUNNEL_ANSWER, TUNNELS_PATH, TunnelRefused

log = logging.getLogger(__name__)
router = APIRouter()
LOOK_AT_LEASE_EVERY_S = 5.0
_REFUSED = 1008


def tunnels_of(socket: WebSocket) -> Tunnels:
    found: Tunnels = socket.app.state.tunnels
    return found


@router.websocket(TUNNELS_PATH + "/jobs/{job_id}")
async def client_door(socket: WebSocket, job_id: str) -> None:
    await _open(socket, lambda unit, account: tunnel_ends(unit, account, JobId(job_id)))


@router.websocket(TUNNELS_PATH + "/leases/{lease_id}/ranks/{rank}")
async def peer_door(socket: WebSocket, lease_id: str, rank: int) -> None:
    await _open(socket, lambda unit, node: peer_ends(unit, NodeId(node), LeaseId(lease_id), rank))


async def _open(socket: WebSocket, ends_for: Callable[[Unit, AccountId], Awaitable[TunnelEnds]]) -> None:
    """`ends_for`: who asks, by its key; raises TorgError when that one may not."""
    edge, tunnels = edge_of(socket), tunnels_of(socket)
    await socket.accept()
    try:
        caller = await dialling_party(socket)
        await edge.admission.admit(caller=caller)
        with tunnels.place_for(caller):
            async with edge.market.reading() as unit:
                ends = await ends_for(unit, caller)
            await _connect(edge, tunnels, socket, ends)
    except TorgError as error:
        await _refuse(socket, error)
    except WebSocketDisconnect:
        pass  # it did not wait


@router.websocket(TUNNELS_PATH + "/{tunnel_id}")
async def node_door(socket: WebSocket, tunnel_id: str) -> None:
    tunnels = tunnels_of(socket)
    await socket.accept()
    try:
        await tunnels.arrive(tunnel_id, NodeId(await dialling_party(socket)), socket)
    except TorgError as error:
        await _refuse(socket, error)


async def _connect(edge: Edge, tunnels: Tunnels, client: WebSocket, ends: TunnelEnds) -> None:
    tunnel_id = secrets.token_urlsafe(18)
    with tunnels.waiting(tunnel_id, ends.node) as waiting:
        asking = OpenTunnel(lease_id=ends.lease_id, tunnel_id=tunnel_id, from_rank=ends.from_rank)
        if not await edge.market.links.send(ends.node, asking):
            raise Unavailable(
                "the job's node is not connected just now", code="node_away", hint="the job may well run on; try again"
            )
        try:
            async with asyncio.timeout(NODE_WITHIN_S):
                node = await waiting.arrived
                answer = TUNNEL_ANSWER.validate_json(await node.receive_text())
        except (TimeoutError, ValidationError, WebSocketDisconnect, KeyError) as error:
            raise Unavailable("the job's node does not answer", code="node_silent", hint="try again") from error
        if isinstance(answer, TunnelRefused):
            await client.send_text(answer.model_dump_json())
            await close_quietly(client, _REFUSED)
            await close_quietly(node)
            return
        await client.send_text(answer.model_copy(update={"node": ends.node}).model_dump_json())
        watching = asyncio.create_task(_until_lease_ends(edge, ends.lease_id, (client, node)))
        try:
            await tunnels.join(client, node)
        finally:
            watching.cancel()


async def _until_lease_ends(edge: Edge, lease_id: LeaseId, sockets: tuple[WebSocket, WebSocket]) -> None:
    """The node ends its tunnels with the lease; one that does not has no use of the gateway all the same."""
    while True:
        await asyncio.sleep(LOOK_AT_LEASE_EVERY_S)
        async with edge.market.reading() as unit:
            if not await lease_lives(unit, lease_id):
                break
    for socket in sockets:
        await close_quietly(socket)


async def _refuse(socket: WebSocket, error: TorgError) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_text(TunnelRefused(problem=error.to_problem()).model_dump_json())
    await close_quietly(socket, _REFUSED)
