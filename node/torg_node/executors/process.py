"""No isolation at all: a job is a plain process of the agent's own user. For tests, and there only for the owner's own jobs.

It keeps the port's manners (logs with offsets, stop, deadline, how it ended) but neither memory, process nor disk limits, and its
jobs end with the agent. A job started in a mount's target runs in the mount's source, since there is nothing to mount into.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import IPv4Interface
from pathlib import Path

from torg_host.sandbox.container import Container
from torg_host.sandbox.images import HOST_PYTHON, host_python_digest
from torg_host.sandbox.output import STREAMS, LogWriter
from torg_node.executors.errors import AlreadyRunning, ExecutorError, ImageNotFound, LaunchRefused
from torg_node.executors.port import (
    Capabilities,
    Exit,
    ExitReason,
    Handle,
    InsideCommand,
    InsideProgram,
    LaunchSpec,
    LoadedImage,
    LogChunk,
    PreparedImage,
    ProgressCallback,
    RegistryAuth,
)

READ_BYTES = 64 << 10
DEADLINE_GRACE_MS = 2000
NOT_FOUND_CODE = 127


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class ProcessExecutor:
    """Refuses to be made unless the caller says that only the owner's own jobs will come."""

    name = "process"
    gives_gpus = True

    def __init__(
        self, state_root: Path, *, allow_own_jobs_only: bool = False, now_ms: Callable[[], int] = _wall_clock_ms
    ) -> None:
        if not allow_own_jobs_only:
            raise LaunchRefused(
                "the process executor isolates nothing and must never run strangers' jobs",
                code="no_isolation",
                hint="Use the sandbox or the docker executor.",
            )
        state_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state_root = state_root.resolve()
        self._now_ms = now_ms
        self._running: dict[str, _Running] = {}

    async def probe(self) -> Capabilities:
        return Capabilities(self.name, "1", "process", verified=(), failed=("isolation: there is none",))

    async def prepare(
        self,
        image: str,
        on_progress: ProgressCallback | None = None,  # noqa: ARG002  the port's
        *,
        auth: RegistryAuth | None = None,  # noqa: ARG002  the port's
        anew: bool = False,  # noqa: ARG002  the port's
    ) -> PreparedImage:
        if image != HOST_PYTHON:
            raise ImageNotFound("only the host's own Python runs without isolation", field="image", value=image)
        return PreparedImage(HOST_PYTHON, await asyncio.to_thread(host_python_digest))

    async def load_archive(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:  # noqa: ARG002  the port's
        raise ImageNotFound("only the host's own Python runs without isolation", field="image", value=str(archive))

    async def prepare_loaded(self, folder: Path, loaded: LoadedImage) -> PreparedImage:  # noqa: ARG002  the port's
        raise ImageNotFound("only the host's own Python runs without isolation", field="image", value=loaded.digest)

    async def must_pull(self, image: str) -> bool:  # noqa: ARG002  the port's
        return False

    async def forget_image(self, reference: str, only_if: str | None = None) -> None:
        """Nothing is kept outside of the node's own cache."""

    async def start(self, launch: LaunchSpec) -> Handle:
        state_dir = self._state_root / launch.name
        if not launch.command or state_dir.parent != self._state_root:
            raise LaunchRefused("not a container name, or no command", field="name", value=launch.name)
        if launch.own_root is not None:
            raise LaunchRefused(
                "without isolation there is no root to give", code="own_root_unavailable", field="own_root"
            )
        try:
            (state_dir / "logs").mkdir(parents=True)
        except FileExistsError as error:
            raise AlreadyRunning("a container of this name exists", field="name", value=launch.name) from error
        (state_dir / "plan.json").write_text("{}")  # by it a container is known to exist
        running = _Running(launch, state_dir, self._now_ms)
        await running.start()
        self._running[launch.name] = running
        return Handle(self.name, launch.name, str(state_dir), running.started_at_ms)

    async def reattach(self, handle: Handle) -> bool:
        return handle.name in self._running

    async def logs(self, handle: Handle, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogChunk]:
        container = Container(self._state_root / handle.name)
        async for piece in container.follow_logs(stdout_from=stdout_from, stderr_from=stderr_from):
            yield LogChunk(piece.stream, piece.offset, piece.data, piece.at_ms)

    async def wait(self, handle: Handle) -> Exit:
        running = self._running.get(handle.name)
        if running is None:
            raise ExecutorError("no such container here", code="unknown_container", field="name", value=handle.name)
        return await asyncio.shield(running.ended)

    async def run_inside(self, handle: Handle, command: InsideCommand) -> InsideProgram:  # noqa: ARG002  the port's
        raise ExecutorError(
            "there is no inside without isolation", code="inside_not_supported", value=command.command[0]
        )

    async def open_interface(self, handle: Handle, address: IPv4Interface) -> int:  # noqa: ARG002  the port's
        raise ExecutorError("a process without a container has no network of its own", code="gang_unavailable")

    async def dial(self, handle: Handle, port: int) -> socket.socket:  # noqa: ARG002  the port's
        raise ExecutorError("there is no inside without isolation", code="inside_not_supported", value=port)

    async def stop(self, handle: Handle, grace_ms: int) -> None:
        if (running := self._running.get(handle.name)) is not None:
            running.end(ExitReason.STOPPED, grace_ms)

    async def remove(self, handle: Handle) -> None:
        await self._remove(handle.name)

    async def reap(self, keep: frozenset[str]) -> tuple[str, ...]:
        strangers = sorted(path.name for path in self._state_root.iterdir() if path.name not in keep)
        for name in strangers:
            await self._remove(name)
        return tuple(strangers)

    async def close(self) -> None:
        """Nothing is held but the jobs themselves, which end with the agent."""

    async def _remove(self, name: str) -> None:
        if (running := self._running.pop(name, None)) is not None:
            running.end(ExitReason.STOPPED, 0)
            await running.ended
        if (self._state_root / name).parent == self._state_root:
            shutil.rmtree(self._state_root / name, ignore_errors=True)


class _Running:
    def __init__(self, launch: LaunchSpec, state_dir: Path, now_ms: Callable[[], int]) -> None:
        self._launch = launch
        self._state_dir = state_dir
        self._now_ms = now_ms
        self._reason: ExitReason | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._logs = LogWriter(str(state_dir / "logs"), launch.limits.log_bytes)
        self._process: asyncio.subprocess.Process | None = None
        self.started_at_ms = now_ms()
        self.ended: asyncio.Task[Exit]

    async def start(self) -> None:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._launch.command,
                *self._launch.args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self._workdir(),
                env={"PATH": os.environ.get("PATH", os.defpath), **self._launch.env},
                start_new_session=True,
            )
        except OSError as error:
            self._logs.write("stderr", f"{error}\n".encode())
        self.ended = asyncio.create_task(self._supervise())

    def end(self, reason: ExitReason, grace_ms: int) -> None:
        """SIGTERM to the program, SIGKILL to its whole session after the grace."""
        if self._process is None or self._process.returncode is not None:
            return
        self._reason = self._reason or reason
        if grace_ms > 0:
            self._process.send_signal(signal.SIGTERM)
        self._timers.append(asyncio.get_running_loop().call_later(grace_ms / 1000, self._kill))

    async def _supervise(self) -> Exit:
        code: int | None = NOT_FOUND_CODE
        if self._process is not None:
            timers = asyncio.get_running_loop()
            deadline_s = self._launch.max_duration_ms / 1000
            self._timers.append(timers.call_later(deadline_s, self.end, ExitReason.MAX_DURATION, DEADLINE_GRACE_MS))
            copying = [asyncio.create_task(self._copy(stream)) for stream in STREAMS]
            await self._process.wait()
            self._kill()  # children that it left would keep the pipes open
            await asyncio.gather(*copying)
            code = self._process.returncode or 0
            code = 128 - code if code < 0 else code
        for timer in self._timers:
            timer.cancel()
        self._logs.close()
        ended = Exit(self._reason or ExitReason.EXITED, code, self.started_at_ms, self._now_ms())
        (self._state_dir / "exit.json").write_text(json.dumps({"reason": ended.reason, "code": code}))
        return ended

    async def _copy(self, stream: str) -> None:
        reader = getattr(self._process, stream)
        while data := await reader.read(READ_BYTES):
            self._logs.write(stream, data)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _workdir(self) -> Path:
        for mount in self._launch.mounts:
            if Path(self._launch.workdir).is_relative_to(mount.target):
                return mount.source / Path(self._launch.workdir).relative_to(mount.target)
        return Path(self._launch.workdir)
