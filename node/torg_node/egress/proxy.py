"""The proxy that a job talks to on its own loopback: HTTP CONNECT, plain HTTP, and SOCKS 5 (CONNECT), told apart by the first byte.

Names are resolved here, never by the job; what they resolve to is checked, and the connection goes to the very address that was
checked. So neither a second answer of a name server nor a redirect leads anywhere that a first request could not go.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import h11

from torg_host.addresses import Address, is_own, neighbour_ranges
from torg_node.egress import socks
from torg_node.egress.flow_limit import FlowLimit
from torg_node.egress.rules import Destination, EgressRules, Refused, destination, destination_of_url, literal

log = logging.getLogger(__name__)
PORT = 3128  # in the job's own network namespace
MAX_CONNECTIONS = 256
_HEAD_TIMEOUT_S, _CONNECT_TIMEOUT_S = 20.0, 10.0
_MAX_HEAD_BYTES = 32 << 10
_HOP_BY_HOP = frozenset({b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade"})

Resolve = Callable[[Destination], Awaitable[Sequence[Address]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def resolve(to: Destination) -> list[Address]:
    """By the host's resolver. Raises OSError for a name that nobody knows."""
    found = await asyncio.get_running_loop().getaddrinfo(to.name, to.port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]


class EgressProxy:
    """`counted` is called whenever a connection has ended."""

    def __init__(
        self,
        rules: EgressRules,
        limit: FlowLimit,
        resolve: Resolve = resolve,
        counted: Callable[[], None] = lambda: None,
    ) -> None:
        self._rules, self._limit, self._resolve, self._counted = rules, limit, resolve, counted
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=listener, limit=_MAX_HEAD_BYTES)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                await self._serve_one(reader, writer)
        except (OSError, TimeoutError, EOFError):
            pass  # either side went away; the other learns it by the close below
        finally:
            self._open -= 1
            self._counted()
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_TIMEOUT_S):
            first = await reader.readexactly(1)
        if first == socks.VERSION:
            await self._serve_socks(reader, writer)
        else:
            await self._serve_http(first, reader, writer)

    async def _serve_socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                to = await socks.asked(reader, writer)
            upstream = await self._connect(to)
        except Refused as refused:
            log.info("refused: %s", refused)
            writer.write(socks.refusal(refused))
            return
        writer.write(socks.GRANTED)
        await self._splice((reader, writer), upstream)

    async def _serve_http(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                request, rest = await _read_head(first, reader)
            target = request.target.decode("ascii", "replace")
            if request.method == b"CONNECT":
                to, head = destination(target), b""
            else:
                to, path = destination_of_url(target)
                head = _to_origin(request, to, path)
            upstream = await self._connect(to)
        except Refused as refused:
            log.info("refused: %s", refused)
            writer.write(_refusal(refused))
            return
        if not head:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._limit.sent_bytes += len(head) + len(rest)
        upstream[1].write(head + rest)
        await self._splice((reader, writer), upstream)

    async def _connect(self, to: Destination) -> Streams:
        """Raises Refused: 403 by the rules, 502 when there is no way."""
        self._rules.check_name(to)
        written = literal(to.name)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                found = [written] if written is not None else await self._resolve(to)
        except (OSError, TimeoutError, UnicodeError):
            raise Refused(f"nobody knows {to.name}", 502) from None
        own = [address for address in found if is_own(address)]
        for address in self._rules.usable(to, found, own=own, near=neighbour_ranges()):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(str(address), to.port)
        raise Refused(f"{to} does not answer", 502)

    async def _splice(self, inside: Streams, outside: Streams) -> None:
        """Until both directions have ended; one may end before the other."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(inside[0], outside[1], sent=True))
                group.create_task(self._carry(outside[0], inside[1], sent=False))
        except* (OSError, TimeoutError):
            pass
        finally:
            outside[1].close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sent: bool) -> None:
        while data := await reader.read(self._limit.piece_bytes):
            if sent:
                self._limit.sent_bytes += len(data)
            else:
                self._limit.received_bytes += len(data)
            writer.write(data)
            await writer.drain()
            await self._limit.take(len(data))
        if writer.can_write_eof():
            writer.write_eof()


async def _read_head(first: bytes, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    """One request's head, strictly parsed, and what came behind it."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
    data = first
    try:
        while True:
            parser.receive_data(data)
            event = parser.next_event()
            if isinstance(event, h11.Request):
                return event, parser.trailing_data[0]
            if event is not h11.NEED_DATA:
                raise Refused("not a request", 400)
            data = await reader.read(_MAX_HEAD_BYTES)
            if not data:
                raise EOFError
    except h11.RemoteProtocolError as error:
        raise Refused(f"not a request: {error}", 400) from None


def _to_origin(request: h11.Request, to: Destination, path: str) -> bytes:
    """The request as its origin gets it. One request per connection: the next may be for somebody else."""
    host = str(to).removesuffix(":80")
    named = {
        part.strip().lower() for name, value in request.headers if name == b"connection" for part in value.split(b",")
    }
    kept = [item for item in request.headers.raw_items() if item[0].lower() not in _HOP_BY_HOP | named | {b"host"}]
    lines = [request.method + b" " + path.encode("ascii", "replace") + b" HTTP/1.1", b"Host: " + host.encode()]
    lines += [name + b": " + value for name, value in kept]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _refusal(refused: Refused) -> bytes:
    reasons = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}
    body = f"torg: {refused}\n".encode()
    head = f"HTTP/1.1 {refused.status} {reasons[refused.status]}\r\nContent-Type: text/plain\r\n"
    return f"{head}X-Torg-Egress: refused\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
