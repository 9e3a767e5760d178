"""Health checks of declared ports, against real servers on this host: what counts as ready, and what is said of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.ports import own_port
from torg_node.executors.errors import ExecutorError
from torg_node.executors.inside import dialled
from torg_node.executors.port import Handle
from torg_node.steps.ports import find_problem
from torg_protocol.ports import HealthCheck, Port

HANDLE = Handle("loopback", "job", "", 0)


class Loopback:
    """Dials this host's loopback, where the sandbox dials its container's."""

    async def dial(self, _handle: Handle, port: int) -> socket.socket:
        async def connect() -> socket.socket:
            made = socket.socket()
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
            return made

        return await dialled(connect(), port)


@contextlib.asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[int]:
    """Its port. `answer` None: takes the connection and is silent."""
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if answer is None:
                await silent.wait()
            elif answer:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        silent.set()
        listening.close()


async def _problem(answer: bytes | None, **health: object) -> str | None:
    async with server(answer) as port:
        checked = Port(port=port, health=HealthCheck.model_validate(health))
        return await find_problem(Loopback(), HANDLE, checked)  # type: ignore[arg-type]  # it has what is needed of an executor


@pytest.mark.parametrize(
    ("answer", "health", "says"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", {"http": "/health"}, None),
        (b"HTTP/1.0 302 Found\r\n\r\n", {"http": "/"}, None),
        (b"HTTP/1.1 503 Busy\r\n\r\n", {"http": "/health"}, "/health answered 503"),
        (b"HTTP/1.1 401 No\r\n\r\n", {"http": "/", "expect_status": 401}, None),
        (b"HTTP/1.1 200 OK\r\n\r\n", {"http": "/", "expect_status": 401}, "/ answered 200"),
        (b"SSH-2.0-x\r\n", {"http": "/"}, "/ was not answered by HTTP"),
        (b"x" * 100_000, {"http": "/"}, "/ was not answered by HTTP"),
        (None, {"http": "/", "timeout": "200ms"}, "no answer within 200 ms"),
        (None, {"tcp": True}, None),
    ],
)
async def test_what_is_ready(answer: bytes | None, health: dict[str, object], says: str | None) -> None:
    assert await _problem(answer, **health) == says


async def test_a_closed_port_is_said_to_be_one() -> None:
    port = own_port()  # one of which the system gives nobody a server meanwhile
    with pytest.raises(ExecutorError):
        await Loopback().dial(HANDLE, port)
    problem = await find_problem(Loopback(), HANDLE, Port(port=port))  # type: ignore[arg-type]
    assert problem == f"nobody listens on port {port} in the container"
