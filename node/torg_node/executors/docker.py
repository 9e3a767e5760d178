"""Runs jobs as containers of a Docker engine: the port's docker side.

Every container carries this node's label; no call touches one that carries another's, so nodes can share an engine.

What survives what: containers and their alarms live in the engine, and so does what they print while no agent is there; captured
output, and why this executor ended a container, live in `state_dir`. A restarted agent needs the handle and the same `state_dir`.

Folders mounted writable must be writable for user 65534; whoever prepares them (the agent's workspace step) sees to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from torg_host.sandbox.errors import SandboxUnavailable
from torg_host.sandbox.images import HOST_PYTHON
from torg_host.sandbox.inside import connect_inside
from torg_host.seccomp import docker_profile
from torg_node.executors import docker_request as request
from torg_node.executors.docker_containers import NodeContainers
from torg_node.executors.docker_engine import Engine, connect_engine
from torg_node.executors.docker_exit import Ending, has_ended, never_ran
from torg_node.executors.docker_gpu import verify_device_nodes, verify_gpus
from torg_node.executors.docker_images import DockerImages
from torg_node.executors.docker_inside import start_in_container
from torg_node.executors.docker_network import hand_over_listener
from torg_node.executors.docker_spare import SpareAlarm
from torg_node.executors.docker_supervise import Supervision
from torg_node.executors.docker_watch import running_since_ms
from torg_node.executors.errors import AlreadyRunning, ExecutorError, ExecutorUnavailable, LaunchRefused
from torg_node.executors.inside import dialled, interface_in
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
    ResourceLimits,
)
from torg_node.executors.sandbox import wall_clock_ms

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,200}")
_GPU_PROBE_LIMITS = ResourceLimits(memory_bytes=256 << 20, cpu_millis=1000, disk_bytes=16 << 20)
_Readying = Coroutine[Any, Any, None]
_LOOK_AGAIN_S = 0.05
_KERNEL_OF_ITS_OWN = "runsc"  # gVisor's containers cannot share a PID namespace with another


class DockerExecutor:
    """One node's containers on one engine. Made by `connect`; `close` ends the connection, never a container."""

    name = "docker"
    gives_gpus = True

    def __init__(
        self,
        engine: Engine,
        images: DockerImages,
        settings: request.NodeSettings,
        state_dir: Path,
        gpu_uuids: tuple[str, ...],
        now_ms: Callable[[], int],
        *,
        keeps_spare: bool = False,
    ) -> None:
        self._engine = engine
        self._containers = NodeContainers(engine, settings.node_label)
        self._images = images
        self._settings = settings
        self._state_dir = state_dir
        self._gpu_uuids = gpu_uuids
        self._now_ms = now_ms
        self._starting: set[str] = set()
        self.is_closed = False
        self._supervised: dict[str, Supervision] = {}
        shares_pids = settings.runtime != _KERNEL_OF_ITS_OWN
        self._spare = SpareAlarm(engine, self._containers, images, settings) if keeps_spare and shares_pids else None

    @classmethod
    async def connect(
        cls,
        socket_path: Path | None,
        node_label: str,
        *,
        state_dir: Path,
        runtime: str | None = None,
        local_images: Collection[str] = (),
        gpu_uuids: Sequence[str] = (),
        gpu_devices: Mapping[str, Sequence[str]] | None = None,
        pull_timeout_s: float = 60.0,
        host_python_allowed: bool = True,
        keeps_spare: bool = False,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> DockerExecutor:
        """Raises ExecutorUnavailable, with the reason, when no engine answers or the one that does is unfit.

        `socket_path` None: DOCKER_HOST, else the usual places. `runtime`: an engine runtime such as "runsc" for all jobs.
        `local_images`: names or ids of images without a registry that jobs may use. `gpu_uuids`: this host's GPUs, which
        `probe` then tries; `start` takes any. `gpu_devices`: by UUID the device nodes of GPUs that no runtime of the engine knows (AMD's).
        `keeps_spare`: once a job has started here, the next one finds its alarm running.
        """
        engine = await connect_engine(socket_path)
        if runtime is not None and runtime not in engine.runtimes:
            await engine.docker.close()
            known = ", ".join(sorted(engine.runtimes))
            raise ExecutorUnavailable(f'the container engine has no runtime "{runtime}"; it has {known}')
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = request.NodeSettings(node_label, docker_profile(), engine.gpu_driver, runtime, gpu_devices or {})
        images = DockerImages(
            engine,
            pull_timeout_s=pull_timeout_s,
            local_images=frozenset(local_images),
            host_python_allowed=host_python_allowed,
        )
        return cls(engine, images, settings, state_dir, tuple(gpu_uuids), now_ms, keeps_spare=keeps_spare)

    async def close(self) -> None:
        await asyncio.gather(*(supervision.close() for supervision in self._supervised.values()))
        if self._spare is not None:
            await self._spare.close()
        await self._engine.docker.close()
        self.is_closed = True

    async def probe(self) -> Capabilities:
        """The shared probes, in the host's Python; and whether containers see this host's GPUs, each of them."""
        from torg_node.executors.probes import DEADLINE_PROBE, GPU_PROBE, probe_executor

        isolation = "gvisor" if self._settings.runtime == _KERNEL_OF_ITS_OWN else "container"
        found = await probe_executor(self, image=HOST_PYTHON, isolation=isolation, version=self._engine.version)
        failed = list(found.failed)
        if isolation == "gvisor":
            failed.append(f"{DEADLINE_PROBE}: gVisor's containers cannot share the alarm's PID namespace")
        trouble = await self._gpu_trouble() if self._gpu_uuids else None
        failed += [f"{GPU_PROBE}: {trouble}"] if trouble else []
        return dataclasses.replace(found, failed=tuple(failed), gpu=bool(self._gpu_uuids) and not trouble)

    async def prepare(
        self,
        image: str,
        on_progress: ProgressCallback | None = None,
        *,
        auth: RegistryAuth | None = None,
        anew: bool = False,
    ) -> PreparedImage:
        return await self._images.prepare(image, on_progress, auth=auth, anew=anew)

    async def load_archive(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
        return await self._images.load(archive, folder, max_bytes)

    async def prepare_loaded(self, folder: Path, loaded: LoadedImage) -> PreparedImage:  # noqa: ARG002  the port's
        reference = loaded.engine_image or loaded.digest
        await self._images.runnable(reference)
        return PreparedImage(reference, loaded.digest)

    async def must_pull(self, image: str) -> bool:
        return await self._images.must_pull(image)

    async def forget_image(self, reference: str, only_if: str | None = None) -> None:
        await self._images.forget(reference, only_if)

    async def save_image(self, reference: str, target: Path) -> None:
        """As an archive, whole. Raises ImageNotFound."""
        await self._images.save((await self._images.runnable(reference)).image_id, target)

    async def start(self, launch: LaunchSpec) -> Handle:
        """Beside the port's: LaunchRefused for what this engine cannot keep; ExecutorError "gpu_mismatch" when the container
        does not see its GPUs. Whatever is raised, nothing of the attempt is left."""
        _refuse(launch)
        image = await self._images.runnable(launch.image)
        if not any(request.command_of(launch, image)):
            raise LaunchRefused(
                "the image has no command of its own, and the job gives none",
                code="command_not_found",
                field="command",
                value=[],
                hint="write command: [program, argument]",
            )
        if launch.name in self._starting:
            raise AlreadyRunning(f"{launch.name} is being started", field="name", value=launch.name)
        self._starting.add(launch.name)
        made: list[str] = []
        try:
            await self._clear_name(launch.name)
            alarm_id, readying, began_at_ms = await self._alarm_for(launch, made)
            body = request.job_body(launch, image, self._settings, alarm_id)
            supervision = await self._beside_the_alarm(readying, self._create_job(launch, body, made))
            if launch.proxy is not None:
                await hand_over_listener(await self._containers.inspect(alarm_id) if alarm_id else None, launch.proxy)
            return await self._start_job(launch, supervision, began_at_ms)
        except BaseException:
            await asyncio.shield(self._discard(made))
            raise
        finally:
            self._starting.discard(launch.name)
            if self._spare is not None and not self._starting:
                self._spare.refill()

    async def reattach(self, handle: Handle) -> bool:
        return await self._supervise(handle.ref) is not None

    async def logs(self, handle: Handle, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogChunk]:
        """Ends at once for an unknown handle."""
        cursors = {"stdout": stdout_from, "stderr": stderr_from}
        supervision = await self._supervise(handle.ref)
        while supervision is not None:
            task = supervision.begin()
            over = task.done()  # before reading: what was written until then is read below
            news = False
            for stream, cursor in cursors.items():
                if chunk := supervision.files.read(stream, cursor):
                    cursors[stream] = chunk.offset + len(chunk.data)
                    news = True
                    yield chunk
            if over and not news:
                return
            if not news:
                await asyncio.wait({task}, timeout=_LOOK_AGAIN_S)

    async def wait(self, handle: Handle) -> Exit:
        """Raises ExecutorError ("unknown_container") for an unknown handle."""
        while True:
            supervision = await self._supervise(handle.ref)
            container = await self._containers.inspect(handle.ref)
            if supervision is None or container is None:
                raise ExecutorError(
                    f"{handle.name} is not on this engine (any more)",
                    code="unknown_container",
                    field="name",
                    value=handle.name,
                )
            if has_ended(container):
                return await supervision.exit(container)
            await asyncio.shield(supervision.begin())

    async def run_inside(self, handle: Handle, command: InsideCommand) -> InsideProgram:
        if await self._containers.inspect(handle.ref) is None:
            raise ExecutorError("the container does not run", code="not_running", field="name", value=handle.name)
        return await start_in_container(self._engine.docker, handle.ref, command)

    async def dial(self, handle: Handle, port: int) -> socket.socket:
        """Needs the host's root, and containers that share its kernel."""
        pid = await self._main_pid(handle)
        try:
            return await dialled(connect_inside(pid, port), port)
        except SandboxUnavailable as error:
            raise ExecutorError(error.message, code=error.code, hint=error.hint) from error

    async def open_interface(self, handle: Handle, address: IPv4Interface) -> int:
        return await interface_in(await self._main_pid(handle), address)

    async def _main_pid(self, handle: Handle) -> int:
        container = await self._containers.inspect(handle.ref)
        pid = int(container["State"].get("Pid") or 0) if container is not None else 0
        if pid == 0:
            raise ExecutorError("the container does not run", code="not_running", field="name", value=handle.name)
        return pid

    async def stop(self, handle: Handle, grace_ms: int) -> None:
        if supervision := await self._supervise(handle.ref):
            await supervision.end(Ending(ExitReason.STOPPED), grace_ms)

    async def remove(self, handle: Handle) -> None:
        await self._containers.riding_over(lambda: self._remove(handle))

    async def _remove(self, handle: Handle) -> None:
        if await self._containers.inspect(handle.ref) is not None:
            await self._containers.delete(handle.ref)
        if alarm := await self._containers.inspect(request.alarm_name(handle.name)):
            await self._containers.delete(alarm["Id"])
        await self._forget(handle.ref)

    async def reap(self, keep: frozenset[str]) -> tuple[str, ...]:
        removed, kept = [], keep | {request.alarm_name(name) for name in keep}
        for container in await self._containers.find():
            if container.name in kept or (self._spare is not None and self._spare.is_ours(container.ref)):
                continue
            await self._containers.delete(container.ref)
            await self._forget(container.ref)
            if container.labels[request.LABEL_ROLE] == request.ROLE_JOB:
                removed.append(container.labels[request.LABEL_NAME])
        return tuple(sorted(removed))

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _gpu_trouble(self) -> str | None:
        """Why a container with all of this host's GPUs does not start; starting verifies what it sees."""
        launch = LaunchSpec(
            name=f"probe-gpu-{secrets.token_hex(4)}",
            image=HOST_PYTHON,
            command=("sleep", "30"),
            env={},
            workdir="/",
            mounts=(),
            limits=_GPU_PROBE_LIMITS,
            max_duration_ms=30_000,
            gpu_uuids=self._gpu_uuids,
        )
        try:
            await self.remove(await self.start(launch))
        except ExecutorError as error:
            return error.message
        return None

    # --- start ------------------------------------------------------------------------------------------------------

    async def _clear_name(self, name: str) -> None:
        """Takes away what a start left that was cut off between creating and starting. Raises AlreadyRunning otherwise."""
        found, leftovers, alarm = await asyncio.gather(
            self._containers.anybodys(name),
            self._containers.find(name=name),
            self._containers.inspect(request.alarm_name(name)),
        )
        if found is not None and not self._containers.is_ours(found):
            raise LaunchRefused(f"another container on this engine is called {name}", field="name", value=name)
        if found is not None and (found["State"]["Status"] != "created" or never_ran(found)):
            raise AlreadyRunning(f"{name} runs here, or ended and was not removed yet", field="name", value=name)
        for ref in {leftover.ref for leftover in leftovers} | ({alarm["Id"]} if alarm else set()):
            await self._containers.delete(ref)

    async def _alarm_for(self, launch: LaunchSpec, made: list[str]) -> tuple[str | None, _Readying | None, int]:
        """Its container, what is left to do before the job may start, and since when it may have been asleep."""
        began_at_ms = self._now_ms()
        if self._settings.runtime == _KERNEL_OF_ITS_OWN:
            return None, None, began_at_ms
        if self._spare is not None and (spare := await self._spare.take(launch)) is not None:
            made.append(spare)
            return spare, self._spare.name(spare, launch), began_at_ms
        body = request.alarm_body(launch, await self._images.sleeper(), self._settings)
        alarm_id = await self._containers.create(request.alarm_name(launch.name), body)
        made.append(alarm_id)
        return alarm_id, self._containers.start(alarm_id), self._now_ms()

    async def _beside_the_alarm(
        self, readying: _Readying | None, creating: Coroutine[Any, Any, Supervision]
    ) -> Supervision:
        """The job's container needs the alarm to run only when it is started itself. Neither goes on when this has raised."""
        job = asyncio.ensure_future(creating)
        alarm = asyncio.ensure_future(readying) if readying is not None else None
        both: list[asyncio.Future[Any]] = [job, alarm] if alarm is not None else [job]
        try:
            await asyncio.wait(both)
        except asyncio.CancelledError:
            await asyncio.wait(both)  # what they make is known before it is taken away
            raise
        finally:
            problems = [problem for done in both if done.done() and (problem := done.exception()) is not None]
        if problems:
            raise problems[0]
        return job.result()

    async def _create_job(self, launch: LaunchSpec, body: Mapping[str, Any], made: list[str]) -> Supervision:
        ref = await self._containers.create(launch.name, body)
        made.append(ref)
        supervision = self._supervised[ref] = self._supervision(ref, body["Labels"])
        await supervision.capture.attach()
        return supervision

    async def _start_job(self, launch: LaunchSpec, supervision: Supervision, began_at_ms: int) -> Handle:
        ref = supervision.ref
        try:
            await self._containers.start(ref)
        except ExecutorError:
            # A command that cannot be executed is the job's mistake, not this host's: it ends as a shell would end it.
            container = await self._containers.inspect(ref)
            if container is None or not never_ran(container):
                raise
            return Handle(executor=self.name, name=launch.name, ref=ref, started_at_ms=self._now_ms())
        supervision.begin()
        container = await self._containers.inspect(ref)
        if container is None:
            raise ExecutorError("the container vanished while it started", code="unknown_container")
        started_at_ms = running_since_ms(container, self._now_ms)
        took_ms = started_at_ms - began_at_ms
        if took_ms > request.ALARM_ALLOWANCE_MS:
            raise ExecutorError(f"the engine took {took_ms} ms to start the container", code="start_too_slow")
        if nodes := request.device_nodes(launch.gpu_uuids, self._settings.gpu_devices):
            await verify_device_nodes(self._engine.docker, ref, nodes)
        elif launch.gpu_uuids:
            await verify_gpus(self._engine.docker, ref, launch.gpu_uuids)
        return Handle(executor=self.name, name=launch.name, ref=ref, started_at_ms=started_at_ms)

    async def _discard(self, made: list[str]) -> None:
        for ref in reversed(made):
            with contextlib.suppress(ExecutorError):  # the first error is the one to tell; reaping gets the rest
                await self._containers.delete(ref)
            await self._forget(ref)

    # --- while it runs ----------------------------------------------------------------------------------------------

    async def _supervise(self, ref: str) -> Supervision | None:
        """The supervision of a container that exists and is ours; begins it when a restarted agent asks for the first time."""
        container = await self._containers.inspect(ref)
        if container is None:
            return None
        if ref not in self._supervised:
            self._supervised[ref] = self._supervision(ref, container["Config"]["Labels"])
        self._supervised[ref].begin()
        return self._supervised[ref]

    def _supervision(self, ref: str, labels: Mapping[str, str]) -> Supervision:
        return Supervision(self._containers, ref, labels, self._folder(ref), self._now_ms)

    def _folder(self, ref: str) -> Path:
        return self._state_dir / ref

    async def _forget(self, ref: str) -> None:
        if supervision := self._supervised.pop(ref, None):
            await supervision.close()
        await asyncio.to_thread(shutil.rmtree, self._folder(ref), ignore_errors=True)


def _refuse(launch: LaunchSpec) -> None:
    if _NAME.fullmatch(launch.name) is None:
        raise LaunchRefused("not a container name", field="name", value=launch.name, hint="letters, digits, _ . -")
    if launch.own_root is not None:
        raise LaunchRefused(
            "a container engine bounds no writable root directory, so it gives none",
            code="own_root_unavailable",
            field="own_root",
            value=str(launch.own_root),
            hint="Beside an engine, a sandbox does: as root, with bubblewrap installed.",
        )
    for mount in launch.mounts:
        source = str(mount.source)
        if os.path.realpath(source) != source or not mount.source.exists():
            raise LaunchRefused(
                "a mount's source is missing, is a link, or is behind one",
                code="bad_mount",
                field="mounts",
                value=source,
                hint="An earlier task may have planted the link. If it is yours, pass the resolved path.",
            )
