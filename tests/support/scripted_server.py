"""An HTTP server whose answers a test writes down, and which breaks connections when told: what no honest marketplace does.

Also a relay in front of a real marketplace that loses answers on their way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

LOSE = "lose"  # take the request, answer nothing, close
HANG = "hang"  # take the request, answer nothing, until whoever asked has gone


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """`cut_after`: send only that many bytes of the body, then close."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json"})


Script = Callable[[Request], Answer | str]


@dataclass
class ScriptedServer:
    url: str
    requests: list[Request] = field(default_factory=list)

    def seen(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]


@contextlib.asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[ScriptedServer]:
    found = ScriptedServer("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                found.requests.append(request)
                answer = script(request)
                if answer == HANG:
                    await reader.read()
                if isinstance(answer, str):
                    return
                writer.write(_head(answer) + answer.body[: answer.cut_after])
                await writer.drain()
                if answer.cut_after is not None:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        server.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    line = (await reader.readline()).decode()
    if not line.strip():
        return None
    method, path, _ = line.split(" ", 2)
    headers = await _read_headers(reader)
    return Request(method, path, headers, await _read_body(reader, headers))


async def _read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return headers


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    return await reader.readexactly(int(headers.get("content-length", 0)))


def _head(answer: Answer) -> bytes:
    headers = {"content-length": str(len(answer.body)), **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class LossyRelay:
    """Forwards to a real server. `lose`: how many answers to requests of this kind still get lost, after the server gave them."""

    url: str
    losing: dict[tuple[str, str], int] = field(default_factory=dict)
    forwarded: list[tuple[str, str]] = field(default_factory=list)

    def lose(self, method: str, path: str, times: int) -> None:
        self.losing[method, path] = times


@contextlib.asynccontextmanager
async def lossy_relay(port: int) -> AsyncIterator[LossyRelay]:
    """In front of 127.0.0.1:`port`. The Host header goes through as it is, so that signatures hold."""
    relay = LossyRelay("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                relay.forwarded.append((request.method, request.path))
                answer = await _forward(port, request)
                if relay.losing.get((request.method, request.path), 0) > 0:
                    relay.losing[request.method, request.path] -= 1
                    return
                writer.write(answer)
                await writer.drain()
                return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()


async def _forward(port: int, request: Request) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        headers = {**request.headers, "connection": "close"}
        head = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode() + request.body)
        await writer.drain()
        return await reader.read(-1)
    finally:
        writer.close()
