"""Tunnels that wait for their node, and the passing on of bytes between two WebSockets. Knows nothing of jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from torg_protocol.errors import Conflict, NotFound, Unavailable
from torg_protocol.ids import AccountId, NodeId

NODE_WITHIN_S = 15.0
TUNNELS_OF_ONE_ACCOUNT = 64
_GOING_AWAY = 1001


@dataclass
class Waiting:
    """A client that waits for its node. The node's handler keeps its socket open until `over`."""

    node: NodeId
    arrived: asyncio.Future[WebSocket] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Tunnels:
    """Of one process: both ends of a tunnel must come to the same one."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._open: Counter[AccountId] = Counter()
        self._closing = asyncio.Event()

    @contextlib.contextmanager
    def place_for(self, account: AccountId) -> Iterator[None]:
        """Raises Conflict too_many_tunnels."""
        if self._open[account] >= TUNNELS_OF_ONE_ACCOUNT:
            raise Conflict(
                f"you have {TUNNELS_OF_ONE_ACCOUNT} tunnels open", code="too_many_tunnels", hint="close some of them"
            )
        self._open[account] += 1
        try:
            yield
        finally:
            self._open[account] -= 1
            if not self._open[account]:
                del self._open[account]

    @contextlib.contextmanager
    def waiting(self, tunnel_id: str, node: NodeId) -> Iterator[Waiting]:
        waiting = self._waiting[tunnel_id] = Waiting(node)
        try:
            yield waiting
        finally:
            self._waiting.pop(tunnel_id, None)
            waiting.over.set()

    async def arrive(self, tunnel_id: str, node: NodeId, socket: WebSocket) -> None:
        """The node's end: returns when the tunnel is over. Raises NotFound tunnel_unknown, for somebody else's too."""
        waiting = self._waiting.pop(tunnel_id, None) if self._is_for(tunnel_id, node) else None
        if waiting is None or waiting.arrived.done():
            raise NotFound(
                "nobody waits for this tunnel (any more)", code="tunnel_unknown", field="tunnel_id", value=tunnel_id
            )
        waiting.arrived.set_result(socket)
        await waiting.over.wait()

    def _is_for(self, tunnel_id: str, node: NodeId) -> bool:
        return tunnel_id in self._waiting and self._waiting[tunnel_id].node == node

    async def join(self, client: WebSocket, node: WebSocket) -> None:
        """Passes on until one of both goes, or the process ends; then both are closed."""
        tasks = {
            asyncio.create_task(_pass_on(client, node)),
            asyncio.create_task(_pass_on(node, client)),
            asyncio.create_task(self._closing.wait()),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for socket in (client, node):
                await close_quietly(socket)

    def close_all(self) -> None:
        self._closing.set()
        for waiting in self._waiting.values():
            if not waiting.arrived.done():
                waiting.arrived.set_exception(
                    Unavailable("the gateway restarts", code="gateway_restarts", hint="try again")
                )


async def _pass_on(source: WebSocket, target: WebSocket) -> None:
    """A slow reader slows the writer down: nothing is read before what came before it is written."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await target.send_bytes(await source.receive_bytes())


async def close_quietly(socket: WebSocket, code: int = _GOING_AWAY) -> None:
    if socket.application_state is WebSocketState.CONNECTED and socket.client_state is WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(code)
