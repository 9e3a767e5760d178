"""The server's sockets send what they have at once: measured, an answer of two writes took 40 ms more on those that do not."""

from __future__ import annotations

import asyncio
import socket

from torg_marketplace.app import listen


async def test_accepted_connections_have_nagles_algorithm_off() -> None:
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    server = await asyncio.start_server(accepted, sock=listen("127.0.0.1", 0))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await seen != 0
        writer.close()
