"""`InsideProgram` over the streams of a process of this host: what the sandbox and the process executor start."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable
from ipaddress import IPv4Interface
from typing import Protocol

from torg_host.overlay import open_interface, why_not
from torg_node.executors.errors import ExecutorError

READ_BYTES = 64 << 10


class _Started(Protocol):
    """As torg_host.sandbox.inside.InsideProcess."""

    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None
    stdin: asyncio.StreamWriter

    def resize(self, rows: int, columns: int) -> None: ...
    def signal(self, number: int) -> None: ...
    async def wait(self) -> int: ...
    async def close(self) -> None: ...


class StreamedProgram:
    def __init__(self, started: _Started) -> None:
        self._started = started
        self._reading: dict[asyncio.Task[bytes], tuple[str, asyncio.StreamReader]] = {}
        self._begin("stdout", started.stdout)
        if started.stderr is not None:
            self._begin("stderr", started.stderr)

    async def read(self) -> tuple[str, bytes] | None:
        while self._reading:
            done, _ = await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
            task = done.pop()
            stream, reader = self._reading.pop(task)
            if data := task.result():
                self._begin(stream, reader)
                return stream, data
        return None

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._started.stdin.write(data)
            await self._started.stdin.drain()

    async def write_eof(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            if self._started.stderr is None:
                await self.write(b"\x04")  # how a terminal says it
            else:
                self._started.stdin.close()

    async def resize(self, rows: int, columns: int) -> None:
        self._started.resize(rows, columns)

    async def signal(self, number: int) -> None:
        self._started.signal(number)

    async def wait(self) -> int:
        return await self._started.wait()

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await self._started.close()

    def _begin(self, stream: str, reader: asyncio.StreamReader) -> None:
        self._reading[asyncio.create_task(_read(reader))] = stream, reader


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(READ_BYTES)
    except OSError:  # a terminal whose last program has ended
        return b""


async def interface_in(pid: int, address: IPv4Interface) -> int:
    if (problem := why_not()) is not None:
        raise ExecutorError(problem, code="gang_unavailable", hint="run torg-node as root, on a host with TUN devices")
    try:
        return await asyncio.to_thread(open_interface, pid, address)
    except FileNotFoundError as error:  # its process went in this moment
        raise ExecutorError("the container does not run", code="not_running") from error
    except OSError as error:
        raise ExecutorError(f"an interface for the gang: {error.strerror}", code="gang_unavailable") from error


async def dialled(connecting: Awaitable[socket.socket], port: int) -> socket.socket:
    """Turns what a socket says into what the port promises."""
    try:
        return await connecting
    except ConnectionRefusedError as error:
        raise ExecutorError(
            f"nobody listens on port {port} in the container",
            code="port_closed",
            field="port",
            value=port,
            hint="has the job started its server, and on this port?",
        ) from error
    except FileNotFoundError as error:  # its process went in this moment
        raise ExecutorError("the container does not run", code="not_running") from error
    except OSError as error:
        raise ExecutorError(f"port {port}: {error.strerror}", field="port", value=port) from error
