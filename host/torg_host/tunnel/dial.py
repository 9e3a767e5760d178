"""One end of a tunnel: a WebSocket to the gateway, signed like any request, turned into a plain socket that SSH can speak over."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator

from pydantic import ValidationError
from solders.keypair import Keypair
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from torg_protocol.errors import TorgError, Unavailable, from_problem
from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.tunnels import TUNNEL_ANSWER, TunnelAnswer, TunnelOpen, TunnelRefused

PIECE_BYTES = 128 << 10
_ANSWER_WITHIN_S = 30.0


class Dialled:
    """A connection to the gateway. First `answer` or `receive_answer`, then `as_socket`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def answer(self, answer: TunnelAnswer) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(answer.model_dump_json())

    async def receive_answer(self) -> TunnelOpen:
        """Raises what the marketplace or the node said, or Unavailable `tunnel_broken`."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                answer = TUNNEL_ANSWER.validate_json(await self._connection.recv())
        except (ConnectionClosed, TimeoutError, ValidationError) as error:
            raise _broken(str(error) or "no answer") from error
        if isinstance(answer, TunnelRefused):
            refusal: TorgError = from_problem(answer.problem)
            raise refusal
        return answer

    @contextlib.asynccontextmanager
    async def as_socket(self) -> AsyncIterator[socket.socket]:
        """The other end of a socket pair, whose bytes are the tunnel's. Belongs to the caller; it sees the end of the tunnel as
        the end of the stream."""
        near, far = socket.socketpair()
        near.setblocking(False)
        pumps = [asyncio.create_task(self._pump_out(near)), asyncio.create_task(self._pump_in(near))]
        try:
            yield far
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            near.close()

    async def _pump_out(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed, OSError):
            while data := await loop.sock_recv(near, PIECE_BYTES):
                await self._connection.send(data)
        await self._connection.close()

    async def _pump_in(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed, OSError):
            async for message in self._connection:
                if isinstance(message, bytes):
                    await loop.sock_sendall(near, message)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def dialled(base_url: str, path: str, keypair: Keypair) -> AsyncIterator[Dialled]:
    """Raises Unavailable `gateway_unreachable`. One try: who calls knows whether to try again."""
    authority = base_url.partition("://")[2].partition("/")[0]
    parts = RequestParts("GET", authority, path, "?", {}, b"")
    signature = sign_request(keypair, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
    try:
        connection = await connect(
            base_url.replace("http", "ws", 1) + path,
            additional_headers=signature,
            compression=None,
            max_size=1 << 20,
            ping_interval=10,
            ping_timeout=30,
            close_timeout=2,
            proxy=None,
        )
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
        raise Unavailable(
            f"the gateway cannot be reached: {str(error) or type(error).__name__}",
            code="gateway_unreachable",
            field="marketplace",
            value=base_url,
        ) from error
    try:
        yield Dialled(connection)
    finally:
        await connection.close()


def _broken(why: str) -> Unavailable:
    return Unavailable(f"the tunnel broke: {why}", code="tunnel_broken", hint="try again")
