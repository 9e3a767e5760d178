"""What processes of one marketplace tell each other: wake-ups, and messages for nodes that are connected to another of them.

Hints, all of it: the database holds what is true, loops look by themselves, heartbeats repeat what a node has not reacted to. A lost message
delays, and corrupts nothing. One process needs no bus.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from torg_marketplace.flow.wakes import NODE
from torg_marketplace.ports import NodeLinks
from torg_protocol.errors import Unavailable
from torg_protocol.ids import NodeId
from torg_protocol.messages import TO_NODE, ToNode

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from torg_marketplace.flow.unit import Market

log = logging.getLogger(__name__)
_PENDING_BYTES = 32 << 20  # published while the server is away; more is dropped
_ASKED_EVERY_S = 5  # whether the server is still there: of a network that is cut nothing is heard


class NatsBus:
    """`subject`: what all messages of this marketplace begin with."""

    def __init__(self, client: Client, subject: str) -> None:
        self._client, self._subject = client, subject

    async def publish(self, kind: str, data: bytes) -> None:
        """Best effort. Never raises."""
        try:
            await self._client.publish(f"{self._subject}.{kind}", data)
        except Exception as error:  # noqa: BLE001 - closed, full, disconnected: hints may get lost
            log.warning("bus: a message got lost: %s", str(error) or type(error).__name__)

    async def listen(self, kind: str, heard: Callable[[bytes], object]) -> None:
        """Calls `heard` with what any other process publishes."""

        async def on_message(message: Msg) -> None:
            heard(message.data)

        await self._client.subscribe(f"{self._subject}.{kind}", cb=on_message)


@asynccontextmanager
async def open_bus(url: str, marketplace: str) -> AsyncIterator[NatsBus]:
    """Connected, and connecting again for as long as it is open. Raises Unavailable `bus_unreachable` when it cannot at first."""
    import nats

    async def on_error(error: Exception) -> None:
        log.warning("bus: %s", str(error) or type(error).__name__)

    try:
        client = await nats.connect(
            url,
            name="torg-marketplace",
            no_echo=True,  # what this process says it knows
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
            connect_timeout=5,
            ping_interval=_ASKED_EVERY_S,
            max_outstanding_pings=2,
            pending_size=_PENDING_BYTES,
            error_cb=on_error,
        )
    except Exception as error:
        raise Unavailable(
            f"the bus does not answer: {error}", code="bus_unreachable", field="--bus-url", value=url
        ) from error
    try:
        yield NatsBus(client, f"torg.{marketplace}")
    finally:
        await client.close()


class LocalLinks(NodeLinks, Protocol):
    def put(self, node_id: NodeId, message: ToNode) -> bool: ...


class BusLinks:
    """Nodes that are connected to this process by its own hub, all others by the bus."""

    def __init__(self, here: LocalLinks, bus: NatsBus) -> None:
        self._here, self._bus = here, bus

    async def start(self) -> None:
        await self._bus.listen("node", self._heard)

    async def send(self, node_id: NodeId, message: ToNode) -> bool:
        """True also for a node that is connected to nobody: nobody here can tell."""
        if node_id in self._here.connected():
            return await self._here.send(node_id, message)
        body = {"node": node_id, "message": message.model_dump(mode="json")}
        await self._bus.publish("node", json.dumps(body).encode())
        return True

    def connected(self) -> frozenset[NodeId]:
        """To this process."""
        return self._here.connected()

    def _heard(self, data: bytes) -> None:
        try:
            body = json.loads(data)
            node_id, message = NodeId(body["node"]), TO_NODE.validate_python(body["message"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            log.warning("bus: a message that nobody understands: %s", error)
            return
        self._here.put(node_id, message)


async def join_bus(market: Market, links: BusLinks, bus: NatsBus) -> None:
    """From now on, wake-ups and messages for nodes go both ways."""
    wakes = market.wakes

    async def tell_others(topics: Collection[str]) -> None:
        await bus.publish("wake", json.dumps(list(topics)).encode())

    def told(data: bytes) -> None:
        topics = [str(topic) for topic in json.loads(data)]
        market.book.touch(NodeId(topic.removeprefix(NODE)) for topic in topics if topic.startswith(NODE))
        for topic in topics:
            wakes.wake(topic)

    wakes.others = tell_others
    await bus.listen("wake", told)
    await links.start()
