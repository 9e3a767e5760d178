"""One container under the agent's eyes: its output captured, its limits kept, its end understood.

All that must outlive the agent is in `folder` (the captured output, why this executor ended the container) or in the engine (labels,
state, the alarm). So a restarted agent supervises on from a handle alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torg_host.sandbox.command import DEADLINE_GRACE_MS
from torg_node.executors import docker_request as request
from torg_node.executors.docker_capture import Capture
from torg_node.executors.docker_cgroup import MemoryReading
from torg_node.executors.docker_containers import NodeContainers
from torg_node.executors.docker_exit import (
    SIGKILLED,
    SIGTERMED,
    Ending,
    Witness,
    engine_time_ms,
    exit_of,
    has_ended,
    timed,
)
from torg_node.executors.docker_log_files import LogFiles
from torg_node.executors.docker_watch import EndingFile, Watched, watch_container, watched
from torg_node.executors.port import Exit

_CLOSE_TOGETHER_MS = 1_000  # what ends both a job and its alarm ends them within this time


class Supervision:
    """Made once per container and agent. `begin` starts the one task, done when the container ended and its output is in
    `files`."""

    def __init__(
        self,
        containers: NodeContainers,
        ref: str,
        labels: Mapping[str, str],
        folder: Path,
        now_ms: Callable[[], int],
    ) -> None:
        self._containers = containers
        self.ref = ref
        self._name = labels[request.LABEL_NAME]
        self._max_duration_ms = int(labels[request.LABEL_MAX_DURATION])
        self._disk_bytes = int(labels[request.LABEL_DISK])
        self._now_ms = now_ms
        self._ending = EndingFile(folder / "ending.json")
        self._memory = MemoryReading()
        self._ran_ms: int | None = None  # as this agent saw it; None: it had ended before
        self.files = LogFiles(folder / "logs", int(labels[request.LABEL_LOG]))
        self.capture = Capture(containers, ref, self.files)
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        """Safe to repeat; begins anew after a failure, but not after `close`."""
        failed = self.task is not None and self.task.done() and not self.task.cancelled() and self.task.exception()
        if self.task is None or failed:
            self.task = asyncio.create_task(self._run())
        return self.task

    async def close(self) -> None:
        """Stops looking; the container goes on."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.capture.close()

    async def end(self, ending: Ending, grace_ms: int = DEADLINE_GRACE_MS) -> None:
        """SIGTERM, SIGKILL after the grace; returns when it ended. No-op when it already has. The first reason stands."""
        container = await self._containers.inspect(self.ref)
        if container is None or not container["State"]["Running"]:
            return
        self._ending.write_once(ending)
        if grace_ms > 0:
            await self._containers.signal(self.ref, "SIGTERM")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_ms / 1000):
                    await self._containers.wait(self.ref)
        await self._containers.signal(self.ref, "SIGKILL")
        await self._containers.wait(self.ref)

    async def exit(self, container: Mapping[str, Any]) -> Exit:
        """`container`: as the engine shows it, ended."""
        ending = self._ending.read()
        looks_killed = ending is None and int(container["State"]["ExitCode"]) in {SIGKILLED, SIGTERMED}
        witness = Witness(
            max_duration_ms=self._max_duration_ms,
            ending=ending,
            oom_kills=self._memory.oom_kills,
            peak_memory_bytes=self._memory.peak_bytes,
            disk_full=await asyncio.to_thread(self._watched(container).disk_is_full),
            killed_by_others=looks_killed and await self._was_killed_by_others(container),
        )
        return timed(exit_of(container, witness), self._ran_ms)

    async def _run(self) -> None:
        capturing = asyncio.create_task(self.capture.run())
        try:
            await self._keep_limits()
            await capturing
        finally:
            capturing.cancel()
            await asyncio.gather(capturing, return_exceptions=True)

    async def _keep_limits(self) -> None:
        container = await self._containers.inspect(self.ref)
        if container is None or has_ended(container):
            return
        ended = asyncio.create_task(self._containers.wait(self.ref))
        target = self._watched(container)
        try:
            await watch_container(target, ended, now_ms=self._now_ms, saw=self._saw_memory, end=self.end)
            self._ran_ms = self._now_ms() - target.started_at_ms
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    def _saw_memory(self, reading: MemoryReading) -> None:
        self._memory = self._memory.merged(reading)

    def _watched(self, container: Mapping[str, Any]) -> Watched:
        return watched(
            container, max_duration_ms=self._max_duration_ms, disk_bytes=self._disk_bytes, now_ms=self._now_ms
        )

    async def _was_killed_by_others(self, container: Mapping[str, Any]) -> bool:
        """Through the engine, which remembers; or together with its alarm, when the engine or the host went down. A job that ends
        itself by a signal leaves neither trace."""
        state = container["State"]
        started_at_ms, finished_at_ms = engine_time_ms(state["StartedAt"]), engine_time_ms(state["FinishedAt"])
        if await self._containers.signals_sent(
            self.ref, since_ms=started_at_ms, until_ms=finished_at_ms + _CLOSE_TOGETHER_MS
        ):
            return True
        if finished_at_ms >= started_at_ms + self._max_duration_ms:
            return False
        alarm = await self._containers.inspect(request.alarm_name(self._name))
        if alarm is None or not has_ended(alarm):
            return False
        return engine_time_ms(alarm["State"]["FinishedAt"]) <= finished_at_ms + _CLOSE_TOGETHER_MS
