"""Copies a container's output into the agent's own log files, with exact offsets, while the container runs.

From the start on it is attached: nothing is lost however fast the job writes, since the writer waits. After a restart of the agent, or
of the connection, it goes on from the engine's kept log, which holds what was written meanwhile (bounded: the oldest are dropped).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import aiohttp

from torg_host.sandbox.output import Throttle
from torg_node.executors.docker_containers import NodeContainers
from torg_node.executors.docker_exit import has_ended, never_ran
from torg_node.executors.docker_log_files import STREAMS, LogFiles
from torg_node.executors.docker_logs import (
    FrameParser,
    LogBroken,
    LogRecord,
    StreamCursor,
    place_of,
    since_parameter,
    stamped,
)
from torg_node.executors.errors import ExecutorError

_TAIL_BYTES = 4096
_ENDS_WITHIN_S = 2.0  # between the end of the output and the engine's word that the container ended
_RECONNECT_S = 0.5
_LOOK_AGAIN_S = 0.05
_BROKEN = (aiohttp.ClientError, TimeoutError, LogBroken)


class Capture:
    """One container's. `attach` before it starts, where that is possible; then `run` once, to its end."""

    def __init__(self, containers: NodeContainers, ref: str, files: LogFiles) -> None:
        self._containers = containers
        self._ref = ref
        self._files = files
        self._attached: aiohttp.ClientResponse | None = None
        self._throttle = Throttle(time.monotonic())

    async def attach(self) -> None:
        self._attached = await self._containers.attach(self._ref)

    def close(self) -> None:
        if self._attached is not None:
            self._attached.close()

    async def run(self) -> None:
        """Returns when the container ended and all of its output is in the files."""
        container = await self._containers.inspect(self._ref)
        if container is None or never_ran(container):
            self.close()
            return
        if self._attached is not None:
            with contextlib.suppress(*_BROKEN), contextlib.closing(self._attached):
                await self._copy_attached(self._attached)
                if await self._has_ended_soon():
                    return
        while True:
            container = await self._containers.inspect(self._ref)
            if container is None or never_ran(container):
                return
            # A followed log may end a little before its last lines; one more pass, after the end, gets them.
            ended = has_ended(container)
            pause_s = _RECONNECT_S
            with contextlib.suppress(*_BROKEN):
                await self._copy_kept(follow=not ended)
                if ended:
                    return
                pause_s = _LOOK_AGAIN_S
            await asyncio.sleep(pause_s)

    async def _copy_attached(self, response: aiohttp.ClientResponse) -> None:
        parser = FrameParser()
        async for data in response.content.iter_any():
            for stream, payload in parser.feed(data):
                self._files.append(stream, payload)
            await self._give_way(len(data))

    async def _copy_kept(self, *, follow: bool) -> None:
        cursors = await self._where_we_stand()
        since = since_parameter([cursor.place for cursor in cursors.values()])
        async for record in self._records(since, follow=follow):
            if data := cursors[record.stream].feed(record):
                self._files.append(record.stream, data)

    async def _where_we_stand(self) -> dict[str, StreamCursor]:
        had = {stream: self._files.end(stream) for stream in STREAMS}
        kept: dict[str, list[LogRecord]] = {stream: [] for stream in STREAMS}
        if any(had.values()):
            async for record in self._records("0", follow=False):
                kept[record.stream].append(record)
        at_ms = self._files.last_write_ms()
        places = {
            stream: place_of(
                kept[stream], tail=self._files.tail(stream, _TAIL_BYTES), had_bytes=had[stream], at_ms=at_ms
            )
            for stream in STREAMS
        }
        return {stream: StreamCursor(places[stream], had[stream]) for stream in STREAMS}

    async def _records(self, since: str, *, follow: bool) -> AsyncIterator[LogRecord]:
        parser = FrameParser()
        async for data in self._containers.raw_logs(self._ref, since=since, follow=follow):
            for frame in parser.feed(data):
                yield stamped(frame)
            await self._give_way(len(data))

    async def _give_way(self, size_bytes: int) -> None:
        """Reading costs the host CPU that nobody pays for: beyond a rate the job has to wait."""
        self._throttle.took(size_bytes, time.monotonic())
        if pause_s := self._throttle.pause_s(time.monotonic()):
            await asyncio.sleep(pause_s)

    async def _has_ended_soon(self) -> bool:
        """The output also ends when the engine goes away, or when the job closes it and runs on."""
        with contextlib.suppress(TimeoutError, ExecutorError):
            async with asyncio.timeout(_ENDS_WITHIN_S):
                await self._containers.wait(self._ref)
                return True
        return False
