"""Declared ports: asked on the job's own loopback until they answer, and then from time to time; the market is told of each change."""

from __future__ import annotations

import asyncio
import contextlib

from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Executor, Handle
from torg_node.lease import Lease
from torg_protocol.messages import PortsState
from torg_protocol.ports import Port, PortState

_FIRST_PAUSE_S, _LONGEST_START_PAUSE_S = 0.2, 2.0  # while a server starts it is asked more often than later
_FAILURES_TO_DOUBT = 3  # in a row, of a port that was ready
_SEND_AGAIN_S = 1.0
_DETAIL_CHARACTERS = 200
_NOT_RUNNING = "its container does not run"


class PortWatch:
    """The declared ports of one lease; each container's are watched by `watch`, and `tell` tells of all. One that declares none costs nothing."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._states = {
            (task, port.port): PortState(port=port.port, name=port.name, task=task, ready=False)
            for task, port in lease.spec.declared_ports
        }
        self._changed = asyncio.Event()
        self.news = asyncio.Event()  # for who waits for a task to be ready, and clears it
        if self._states:
            self._changed.set()

    async def run(self, handle: Handle, ended: asyncio.Event) -> None:
        """Of a job of one container."""
        await asyncio.gather(self.watch(None, handle, ended), self.tell(ended))

    async def watch(self, task: str | None, handle: Handle, ended: asyncio.Event) -> None:
        """Those of this container, until `ended`; then they are not ready."""
        ports = [port for owner, port in self._lease.spec.declared_ports if owner == task]
        watching = [asyncio.create_task(self._watch(task, port, handle)) for port in ports]
        try:
            await ended.wait()
        finally:
            for one in watching:
                one.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            for port in ports:
                self._found(task, port, ready=False, detail=_NOT_RUNNING)

    async def tell(self, ended: asyncio.Event) -> None:
        """The market, of each change; until `ended`."""
        telling = asyncio.create_task(self._tell())
        try:
            await ended.wait()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _watch(self, task: str | None, port: Port, handle: Handle) -> None:
        failures, pause_s = 0, _FIRST_PAUSE_S
        while True:
            problem = await find_problem(self._lease.node.executor, handle, port)
            failures = 0 if problem is None else failures + 1
            was_ready = self._states[task, port.port].ready
            ready = problem is None or (was_ready and failures < _FAILURES_TO_DOUBT)
            self._found(task, port, ready=ready, detail="" if ready else (problem or ""))
            every_s = port.health.every / 1000
            await asyncio.sleep(every_s if ready else min(pause_s, every_s))
            pause_s = _FIRST_PAUSE_S if ready else min(pause_s * 1.5, _LONGEST_START_PAUSE_S)

    def _found(self, task: str | None, port: Port, *, ready: bool, detail: str) -> None:
        before = self._states[task, port.port]
        found = before.model_copy(update={"ready": ready, "detail": detail})
        if found != before:
            self._states[task, port.port] = found
            self._changed.set()
            self.news.set()

    @property
    def ready_tasks(self) -> frozenset[str]:
        """Those that have ports, all of which are ready."""
        by_task: dict[str, list[bool]] = {}
        for (task, _), state in self._states.items():
            if task is not None:
                by_task.setdefault(task, []).append(state.ready)
        return frozenset(task for task, found in by_task.items() if all(found))

    async def _tell(self) -> None:
        lease = self._lease
        while True:
            await self._changed.wait()
            self._changed.clear()
            message = PortsState(
                lease_id=lease.id,
                fence=lease.grant.fence,
                at_ms=lease.node.now_ms(),
                ports=tuple(self._states.values()),
            )
            if not await lease.node.send(message):
                self._changed.set()
                await asyncio.sleep(_SEND_AGAIN_S)


async def find_problem(executor: Executor, handle: Handle, port: Port) -> str | None:
    """Why the port is not ready, in words; None: it is."""
    try:
        async with asyncio.timeout(port.health.timeout / 1000):
            socket = await executor.dial(handle, port.port)
            reader, writer = await asyncio.open_connection(sock=socket)
            try:
                return await _ask(reader, writer, port)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ExecutorError as error:
        return error.message[:_DETAIL_CHARACTERS]
    except TimeoutError:
        return f"no answer within {port.health.timeout} ms"
    except OSError as error:
        return f"the connection broke: {error.strerror or error}"[:_DETAIL_CHARACTERS]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: Port) -> str | None:
    if port.health.http is None:
        return None
    host = f"localhost:{port.port}"
    head = f"GET {port.health.http} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: torg\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    await writer.drain()
    try:
        words = (await reader.readline()).decode("latin-1").split()
    except ValueError:  # a first line without end
        words = []
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        return f"{port.health.http} was not answered by HTTP"
    status, wanted = int(words[1]), port.health.expect_status
    if status == wanted or (wanted is None and 200 <= status < 400):
        return None
    return f"{port.health.http} answered {status}"
