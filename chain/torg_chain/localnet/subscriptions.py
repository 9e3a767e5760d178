"""Subscriptions over WebSocket, as Solana's PubSub has them: accountSubscribe, logsSubscribe, programSubscribe, rootSubscribe,
signatureSubscribe, slotSubscribe, and the unsubscribing ones. A subscription dies with its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from torg_chain.localnet.cluster import Cluster
from torg_chain.localnet.params import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError
from torg_chain.localnet.watches import WATCHES, Watch

MAX_WAITING = 4096  # messages for a subscriber that does not read; then it is cut off, as it has a hole anyway


@dataclass(eq=False)
class Subscriber:
    """One connection. What it is to be sent waits in `outbox`; None ends it."""

    outbox: asyncio.Queue[dict[str, Any] | None] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))
    watches: dict[int, tuple[str, Watch]] = field(default_factory=dict)
    is_behind: bool = False

    def post(self, message: dict[str, Any]) -> None:
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.is_behind = True
            self.outbox.get_nowait()
            self.outbox.put_nowait(None)


class SubscriptionHub:
    """Call `publish` after everything that may have changed the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._subscribers = cluster, set[Subscriber]()
        self._ids = itertools.count(1)
        self._sockets: set[web.WebSocketResponse] = set()

    def publish(self) -> None:
        for subscriber in self._subscribers:
            if not subscriber.is_behind:
                self._tell(subscriber)

    def _tell(self, subscriber: Subscriber) -> None:
        for number, (kind, watch) in list(subscriber.watches.items()):
            for result in watch.news():
                params = {"subscription": number, "result": result}
                subscriber.post({"jsonrpc": "2.0", "method": f"{kind}Notification", "params": params})
            if watch.is_done:
                del subscriber.watches[number]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(heartbeat=30)
        if not socket.can_prepare(request).ok:
            raise web.HTTPUpgradeRequired(text="JSON-RPC by POST, subscriptions by WebSocket\n")
        await socket.prepare(request)
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        self._sockets.add(socket)
        writing = asyncio.create_task(_write(socket, subscriber))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    subscriber.post(self._answer(subscriber, message.data))
                    self._tell(subscriber)  # a signature may have landed before it was asked for
        finally:
            self._subscribers.discard(subscriber)
            self._sockets.discard(socket)
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
        return socket

    async def close(self, _: web.Application) -> None:
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the localnet stops")

    def _answer(self, subscriber: Subscriber, text: str) -> dict[str, Any]:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": None}
        try:
            request = json.loads(text)
            reply["id"] = request.get("id")
            return {**reply, "result": self._call(subscriber, str(request["method"]), request.get("params") or [])}
        except RpcError as error:
            return {**reply, "error": error.to_json()}
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            return {**reply, "error": {"code": INVALID_PARAMS, "message": f"Invalid params: {error}"}}

    def _call(self, subscriber: Subscriber, method: str, params: list[Any]) -> Any:
        ends = method.endswith("Unsubscribe")
        kind = method.removesuffix("Unsubscribe" if ends else "Subscribe")
        if kind not in WATCHES or kind == method:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        if ends:
            if subscriber.watches.pop(int(params[0]), None) is None:
                raise RpcError(INVALID_PARAMS, "Invalid subscription id.")
            return True
        number = next(self._ids)
        subscriber.watches[number] = (kind, WATCHES[kind](self._cluster, params))
        return number


async def _write(socket: web.WebSocketResponse, subscriber: Subscriber) -> None:
    with contextlib.suppress(ConnectionError):
        while (message := await subscriber.outbox.get()) is not None:
            await socket.send_json(message)
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow: messages were left out")
