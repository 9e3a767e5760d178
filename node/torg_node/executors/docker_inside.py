"""A further program in a container of an engine: its exec call, with a stream of our own.

The engine gives it the container's own user, limits, capabilities and seccomp profile. What the engine lacks is an end: a program whose
caller goes away runs on. On this host we end it by its process id, which the engine tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import aiodocker
import aiohttp
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from torg_node.executors.docker_engine import engine_errors
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import InsideCommand

_STREAMS = {1: "stdout", 2: "stderr"}
_POLL_S = 0.02
_STARTS_WITHIN_S = 60.0


class DockerProgram:
    def __init__(self, program: Exec, stream: Stream, *, is_terminal: bool) -> None:
        self._exec, self._stream, self._is_terminal = program, stream, is_terminal

    async def read(self) -> tuple[str, bytes] | None:
        try:
            message = await self._stream.read_out()
        except (aiohttp.ClientError, ConnectionError):
            return None
        return None if message is None else (_STREAMS[message.stream], message.data)

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, RuntimeError, AssertionError):
            await self._stream.write_in(data)

    async def write_eof(self) -> None:
        if self._is_terminal:
            await self.write(b"\x04")
            return
        # The library closes both directions at once; ending one is the transport's own.
        response = self._stream._resp  # noqa: SLF001
        if response is not None and response.connection is not None and response.connection.transport is not None:
            with contextlib.suppress(OSError, RuntimeError):
                response.connection.transport.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        with contextlib.suppress(aiodocker.DockerError, aiohttp.ClientError):
            await self._exec.resize(h=rows, w=columns)

    async def signal(self, number: int) -> None:
        """Waits for one that is just starting: it counts as running before it has a process id."""
        for _ in range(round(_STARTS_WITHIN_S / _POLL_S)):
            state = await self._state()
            if not state["Running"]:
                return
            if (pid := int(state.get("Pid") or 0)) > 1:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
                return
            await asyncio.sleep(_POLL_S)

    async def wait(self) -> int:
        while True:
            state = await self._state()
            if not state["Running"] and state["ExitCode"] is not None:
                return int(state["ExitCode"])
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        with contextlib.suppress(ExecutorError):
            await self.signal(signal.SIGHUP)
            if not await self._ends(within_s=1.0):
                await self.signal(signal.SIGKILL)
                await self._ends(within_s=10.0)
        await self._stream.close()

    async def _ends(self, *, within_s: float) -> bool:
        for _ in range(round(within_s / _POLL_S)):
            if not (await self._state())["Running"]:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _state(self) -> dict[str, Any]:
        with engine_errors("looking at a program in the container"):
            return await self._exec.inspect()


async def start_in_container(docker: aiodocker.Docker, ref: str, command: InsideCommand) -> DockerProgram:
    """Raises ExecutorError `not_running`."""
    is_terminal = command.terminal is not None
    with engine_errors("starting a program in the container"):
        try:
            program = await docker.containers.container(ref).exec(
                command.command,
                stdin=True,
                tty=is_terminal,
                environment=dict(command.env),
            )
            stream = program.start()
            await stream._init()  # noqa: SLF001  # begins it: the library would only do so at the first read
        except aiodocker.DockerError as error:
            if error.status in {404, 409}:
                raise ExecutorError(
                    "the container does not run", code="not_running", field="name", value=ref
                ) from error
            raise
        started = DockerProgram(program, stream, is_terminal=is_terminal)
    if command.terminal is not None:
        await started.resize(*command.terminal)
    return started
