"""Bodies of requests, as a small application behind the marketplace's protocol gets them: whole, and in few turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from torg_marketplace.api.bodies import GATHERED_BYTES, GatheringProtocol

_PACKET_BYTES = 16 << 10
_LARGEST_PACKET_BYTES = 256_000  # of the event loop


class Heard:
    """Everything that the application was told, message by message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while True:
            self.messages.append(message := await receive())
            if not message.get("more_body"):
                break
        self.ended.set()
        if message["type"] == "http.request":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    @property
    def sizes(self) -> list[int]:
        return [len(message["body"]) for message in self.messages]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages)


@contextlib.asynccontextmanager
async def served(app: Heard) -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, http=GatheringProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def put(port: int, head: str, body: bytes) -> bytes:
    """In small packets, as a network brings them. The first line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"PUT /blobs/x HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
        for start in range(0, len(body), _PACKET_BYTES):
            writer.write(body[start : start + _PACKET_BYTES])
            await writer.drain()
        return await reader.readline()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "size_bytes", [0, 1, _PACKET_BYTES, GATHERED_BYTES - 1, GATHERED_BYTES, GATHERED_BYTES + 1, 4 * GATHERED_BYTES + 5]
)
async def test_a_body_comes_whole_and_a_mib_at_a_time(size_bytes: int) -> None:
    app, body = Heard(), os.urandom(size_bytes)
    async with served(app) as port:
        answer = await put(port, f"content-length: {size_bytes}", body)

    assert answer.startswith(b"HTTP/1.1 204")
    assert app.body == body
    assert all(GATHERED_BYTES <= size < GATHERED_BYTES + _LARGEST_PACKET_BYTES for size in app.sizes[:-1])


async def test_a_body_without_an_announced_length_comes_whole_too() -> None:
    app, body = Heard(), os.urandom(GATHERED_BYTES + 70_000)
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    async with served(app) as port:
        answer = await put(port, "transfer-encoding: chunked", chunks)

    assert answer.startswith(b"HTTP/1.1 204")
    assert app.body == body


async def test_who_hangs_up_in_the_middle_is_noticed() -> None:
    app = Heard()
    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT /blobs/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + b"x" * 10)
        await writer.drain()
        writer.close()
        async with asyncio.timeout(150):
            await app.ended.wait()

    assert [message["type"] for message in app.messages] == ["http.disconnect"]
