"""The open connections of nodes: one per node, the newest wins. Implements the NodeLinks port."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from torg_protocol.ids import NodeId
from torg_protocol.messages import ToNode
from torg_protocol.versions import PROTOCOL_VERSION, is_spoken_in

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

_QUEUE = 1_000  # messages to a node that does not read; then its connection is closed, and hello repeats what matters


class Connection:
    def __init__(self, node_id: NodeId, socket: WebSocket) -> None:
        self.node_id = node_id
        self.since_ms = 0  # when its hello was applied
        self.version = PROTOCOL_VERSION
        self._socket = socket
        self._queue: asyncio.Queue[ToNode] = asyncio.Queue(_QUEUE)
        self.replaced = asyncio.Event()

    def put(self, message: ToNode) -> bool:
        """Queues it, unless it is of a kind that the node's version does not know: such a node does without."""
        if not is_spoken_in(message.type, self.version):
            return True
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            self.replaced.set()
            return False
        return True

    async def send_now(self, message: ToNode) -> None:
        await self._socket.send_text(message.model_dump_json())

    async def pump(self) -> None:
        """Sends what is queued, until cancelled or disconnected."""
        while True:
            await self.send_now(await self._queue.get())


class Hub:
    def __init__(self) -> None:
        self._connections: dict[NodeId, Connection] = {}

    def join(self, connection: Connection) -> None:
        older = self._connections.get(connection.node_id)
        if older is not None:
            older.replaced.set()
        self._connections[connection.node_id] = connection

    def leave(self, connection: Connection) -> None:
        if self._connections.get(connection.node_id) is connection:
            del self._connections[connection.node_id]

    async def send(self, node_id: NodeId, message: ToNode) -> bool:
        return self.put(node_id, message)

    def put(self, node_id: NodeId, message: ToNode) -> bool:
        """Queues it for a node that is connected here."""
        connection = self._connections.get(node_id)
        return connection is not None and connection.put(message)

    def connected(self) -> frozenset[NodeId]:
        return frozenset(self._connections)

    def close_all(self) -> None:
        for connection in self._connections.values():
            connection.replaced.set()
