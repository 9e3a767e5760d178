"""An alarm that runs before there is a job for it, so that a job waits for one container's start and not for two.

It reads from its standard input how long to sleep, says that it knows, and sleeps. Until then nothing depends on it; the engine closes that
input when the agent is gone, and then it ends. From its answer on it is what `docker_request` says of alarms: it needs nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass

import aiodocker
import aiohttp
from aiodocker.stream import Stream

from torg_node.executors import docker_request as request
from torg_node.executors.docker_containers import NodeContainers
from torg_node.executors.docker_engine import Engine, engine_errors
from torg_node.executors.docker_images import DockerImages
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import LaunchSpec

log = logging.getLogger(__name__)
SPARE = "torg-spare-"  # what its name begins with until it is named after a job
_ANSWERS_WITHIN_S = 10.0  # of a busy host; half of what a start may take at all
# AssertionError: aiodocker's way to say that a stream has lost its connection.
_BROKEN = (ExecutorError, aiodocker.DockerError, aiohttp.ClientError, OSError, RuntimeError, AssertionError)


@dataclass(frozen=True, slots=True)
class _Waiting:
    ref: str
    stream: Stream  # its input and output


class SpareAlarm:
    """At most one; `refill` makes it. Where an engine does not play along there is none, and jobs get alarms made for them."""

    def __init__(
        self, engine: Engine, containers: NodeContainers, images: DockerImages, settings: request.NodeSettings
    ) -> None:
        self._docker = engine.docker
        self._containers = containers
        self._images = images
        self._settings = settings
        self._waiting: _Waiting | None = None
        self._filling: asyncio.Task[None] | None = None
        self._ours: set[str] = set()  # waiting, or not yet named after its job

    def is_ours(self, ref: str) -> bool:
        """Whether it is no leftover although it bears no job's name."""
        return ref in self._ours

    def refill(self) -> None:
        """In the background. Safe to repeat."""
        if self._waiting is None and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill())

    async def take(self, launch: LaunchSpec) -> str | None:
        """The alarm's container, which sleeps from now on as long as the launch says; it is to be named before the job starts. None: there is
        none that answers."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN_S):
                await waiting.stream.write_in(f"{request.alarm_sleep_s(launch):.3f}\n".encode())
                answer = await waiting.stream.read_out()
            if answer is not None and answer.data == request.ARMED:
                return waiting.ref
        except _BROKEN as error:
            log.info("the spare alarm does not answer: %s", error)
        except BaseException:
            await asyncio.shield(self._discard(waiting.ref))
            raise
        finally:
            await _let_go(waiting.stream)
        await self._discard(waiting.ref)
        return None

    async def name(self, ref: str, launch: LaunchSpec) -> None:
        """After its job. Raises ExecutorError."""
        await self._containers.rename(ref, request.alarm_name(launch.name))
        self._ours.discard(ref)

    async def close(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            await _let_go(waiting.stream)
            await self._discard(waiting.ref)

    async def _fill(self) -> None:
        try:
            body = request.spare_alarm_body(await self._images.sleeper(), self._settings)
            ref = await self._containers.create(f"{SPARE}{secrets.token_hex(8)}", body)
            self._ours.add(ref)
            try:
                self._waiting = await self._running(ref)
            except BaseException:
                await asyncio.shield(self._discard(ref))
                raise
        except _BROKEN as error:
            log.info("no spare alarm: %s", error)

    async def _running(self, ref: str) -> _Waiting:
        stream = self._docker.containers.container(ref).attach(stdin=True, stdout=True)
        try:
            with engine_errors("attaching to the spare alarm"):
                await stream.__aenter__()
            await self._containers.start(ref)
        except BaseException:
            await _let_go(stream)
            raise
        return _Waiting(ref, stream)

    async def _discard(self, ref: str) -> None:
        with contextlib.suppress(*_BROKEN):  # what stays ends by itself, and the next agent reaps it
            await self._containers.delete(ref)
        self._ours.discard(ref)


async def _let_go(stream: Stream) -> None:
    with contextlib.suppress(*_BROKEN):
        await stream.close()
