"""A node whose disk is full cannot write down what it hears: it hears it again on a new connection, and lives on."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import cast

from solders.keypair import Keypair
from websockets.asyncio.server import ServerConnection, serve

from torg_node.link import Link
from torg_protocol.messages import Heartbeat, Hello, ToNode, Welcome
from torg_protocol.versions import PROTOCOL_VERSION

HELLO = cast("Hello", Heartbeat(at_ms=1))  # the marketplace here welcomes anybody
WELCOME = Welcome(
    protocol_version=PROTOCOL_VERSION, marketplace="m", server_time_ms=1, heartbeat_ms=1, fee_basis_points=0, leases=()
)


async def test_a_welcome_that_cannot_be_written_down_is_heard_again() -> None:
    room = iter([False, True])
    written = asyncio.Event()

    async def marketplace(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(WELCOME.model_dump_json())
        await connection.wait_closed()

    async def write_down(_: Welcome) -> None:
        if not next(room):
            raise sqlite3.OperationalError("database or disk is full")
        written.set()

    async def no_other(_: ToNode) -> None:
        raise AssertionError("nothing else was sent")

    async with serve(marketplace, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        link = Link(url, Keypair(), lambda _: HELLO, write_down, no_other, no_other)
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(150):
                await asyncio.wait({running, asyncio.ensure_future(written.wait())}, return_when="FIRST_COMPLETED")
            assert written.is_set(), running.exception()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
