"""Connections to PostgreSQL that notice when nobody is there any more.

Of a network that is cut, or a machine that is gone, TCP says nothing: what was sent is sent again and again, for a quarter of an hour, and an
answer that is waited for never comes. The kernel can be told to give up earlier. A server that is merely busy or stopped still acknowledges,
and is waited for.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import asyncpg

# What a connection that broke raises. The driver calls one that broke while it was asked something an internal error of its own.
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)


def connection_class(gone_after_s: float) -> type[asyncpg.Connection]:
    """For asyncpg's `connect`: a connection breaks when its server's machine has said nothing for so long while something was to be said."""

    class Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
        def __init__(self, protocol: Any, transport: asyncio.Transport, *arguments: Any) -> None:
            super().__init__(protocol, transport, *arguments)
            _give_up_after(transport.get_extra_info("socket"), gone_after_s)

    return Connection


def _give_up_after(connection: socket.socket, gone_after_s: float) -> None:
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    look_every_s = max(1, round(gone_after_s / 3))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, look_every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, look_every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(gone_after_s * 1000))
