"""What a job printed. A chunk ends wherever the pipe was read: a job's own line comes whole in one, or in as many as it has words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torg_node.executors.port import Executor, Handle, LogChunk


async def read_logs(executor: Executor, handle: Handle, **offsets: int) -> list[LogChunk]:
    """All of both streams, up to the job's end."""
    async with asyncio.timeout(180):
        return [chunk async for chunk in executor.logs(handle, **offsets)]


async def read_until(executor: Executor, handle: Handle, awaited: str) -> str:
    """What a running job says on stdout up to the piece that completes `awaited`. Fails with what there was if it does not come."""
    said = ""
    try:
        async with asyncio.timeout(180):
            async for chunk in executor.logs(handle):
                said += text_of([chunk])
                if awaited in said:
                    return said
    except TimeoutError:
        pass
    raise AssertionError(f"{awaited!r} is not in {said!r}")


def text_of(chunks: Sequence[LogChunk], stream: str = "stdout") -> str:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream).decode()
