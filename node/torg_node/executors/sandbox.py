"""Strangers' jobs under bubblewrap: no daemon, no image needed, starts in tens of milliseconds.

A thin layer over `torg_host.sandbox`: each container is a directory below `state_root` with a shim that outlives the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

from torg_host.oci_archive import read_image
from torg_host.oci_unpack import unpack_image
from torg_host.sandbox.command import ContainerSpec, Isolation, SandboxLimits
from torg_host.sandbox.container import Container, LogPiece, Outcome
from torg_host.sandbox.errors import SandboxStartFailed, SandboxUnavailable
from torg_host.sandbox.images import (
    HOST_PYTHON,
    OCI_DIRECTORY,
    Image,
    SandboxMount,
    host_python,
    host_python_digest,
    oci_directory,
    tree_digest,
)
from torg_host.sandbox.inside import connect_inside, main_pid, start_inside
from torg_host.sandbox.launch import bwrap_version, isolation_here, launch, spare_shims, sweep
from torg_host.sandbox.own_root import FIRST_HOST_ID, OwnRoot, ids_are_shifted, user_of
from torg_node.executors.errors import (
    AlreadyRunning,
    ExecutorError,
    ExecutorUnavailable,
    ImageForbidden,
    ImageNotFound,
    LaunchRefused,
)
from torg_node.executors.inside import StreamedProgram, dialled, interface_in
from torg_node.executors.port import (
    PROXY_PORT,
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
from torg_protocol.errors import Conflict, Invalid, TorgError

_LOADED = "loaded:"  # and the folder of an image that came as an archive
_ROOT, _CONFIG = "rootfs", "config.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class SandboxExecutor:
    """`state_root`: this node's own directory; it is made with mode 0700. `image_root`: unpacked images that jobs may name as
    `oci-dir:/path`; without it only `host-python` runs, and with `host_python_allowed=False` not even that. `keeps_spare`: the shim of the next container waits already, a process of 10 MiB; then `close`."""

    name = "sandbox"
    gives_gpus = False

    def __init__(
        self,
        state_root: Path,
        *,
        image_root: Path | None = None,
        host_python_allowed: bool = True,
        isolation: Isolation | None = None,
        keeps_spare: bool = False,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        state_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state_root = state_root.resolve()
        self._image_root = image_root.resolve() if image_root else None
        self._host_python_allowed = host_python_allowed
        self._isolation = isolation
        self._now_ms = now_ms
        self._filling: set[asyncio.Task[None]] = set()
        self._spares = spare_shims(self._state_root) if keeps_spare else None
        self._oci_digests: dict[Path, str] = {}

    async def probe(self) -> Capabilities:
        from torg_node.executors.probes import probe_executor

        return await probe_executor(self, image=HOST_PYTHON, isolation="sandbox", version=self._version())

    async def prepare(
        self,
        image: str,
        on_progress: ProgressCallback | None = None,
        *,
        auth: RegistryAuth | None = None,  # noqa: ARG002  the port's
        anew: bool = False,  # noqa: ARG002  the port's
    ) -> PreparedImage:
        found = self._image(image)
        if found.reference == HOST_PYTHON:
            digest = await asyncio.to_thread(host_python_digest)
        else:
            digest = await self._oci_digest(Path(found.reference.removeprefix(OCI_DIRECTORY)))
        if on_progress is not None:
            on_progress(0, 0, f"{image} is ready")
        return PreparedImage(found.reference, digest)

    async def load_archive(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
        return await asyncio.to_thread(_load, archive, folder, max_bytes)

    async def prepare_loaded(self, folder: Path, loaded: LoadedImage) -> PreparedImage:
        root = folder / _ROOT
        if not root.is_dir() or (os.geteuid() == 0 and not ids_are_shifted(root)):  # of an older release: loaded again
            raise ImageNotFound("the image is not on this host (any more)", field="image", value=loaded.digest)
        return PreparedImage(f"{_LOADED}{folder}", loaded.digest)

    async def must_pull(self, image: str) -> bool:  # noqa: ARG002  the port's
        return False

    async def forget_image(self, reference: str, only_if: str | None = None) -> None:
        """Nothing is kept outside of the node's own cache."""

    async def start(self, launch_spec: LaunchSpec) -> Handle:
        self._check(launch_spec)
        state_dir = self._state_root / launch_spec.name
        started_at_ms = self._now_ms()
        image, command, workdir = self._what_to_run(launch_spec)
        own_root = _own_root(launch_spec)
        spec = ContainerSpec(
            command=command,
            image=image,
            limits=_limits(launch_spec.limits),
            max_duration_ms=launch_spec.max_duration_ms,
            env=launch_spec.env,
            workdir=workdir,
            cpus=launch_spec.cpus,
            listener_port=PROXY_PORT if launch_spec.proxy else 0,
            mounts=tuple(SandboxMount(mount.source, mount.target, mount.writable) for mount in launch_spec.mounts),
            own_root=own_root,
        )
        try:
            channel = launch_spec.proxy.fileno() if launch_spec.proxy else -1
            await launch(spec, state_dir, isolation=self._isolation, channel=channel, spares=self._spares)
        except TorgError as error:
            raise _translated(error) from error
        finally:
            self._refill()
        return Handle(self.name, launch_spec.name, str(state_dir), started_at_ms)

    async def reattach(self, handle: Handle) -> bool:
        return self._container(handle).exists()

    async def logs(self, handle: Handle, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogChunk]:
        container = self._container(handle)
        async for piece in container.follow_logs(stdout_from=stdout_from, stderr_from=stderr_from):
            yield _chunk(piece)

    async def wait(self, handle: Handle) -> Exit:
        try:
            return _exit(await self._container(handle).wait())
        except FileNotFoundError as error:
            raise _unknown(handle) from error

    async def run_inside(self, handle: Handle, command: InsideCommand) -> InsideProgram:
        state_dir = self._container(handle).state_dir
        try:
            return StreamedProgram(await start_inside(state_dir, command.command, command.env, command.terminal))
        except TorgError as error:
            raise ExecutorError(error.message, code=error.code, hint=error.hint) from error

    async def dial(self, handle: Handle, port: int) -> socket.socket:
        try:
            return await dialled(connect_inside(main_pid(self._container(handle).state_dir), port), port)
        except (Conflict, SandboxUnavailable) as error:
            raise ExecutorError(error.message, code=error.code, hint=error.hint) from error

    async def open_interface(self, handle: Handle, address: IPv4Interface) -> int:
        try:
            return await interface_in(main_pid(self._container(handle).state_dir), address)
        except Conflict as error:
            raise ExecutorError(error.message, code=error.code, hint=error.hint) from error

    async def stop(self, handle: Handle, grace_ms: int) -> None:
        await self._container(handle).stop(grace_ms)

    async def remove(self, handle: Handle) -> None:
        await self._container(handle).remove()

    async def reap(self, keep: frozenset[str]) -> tuple[str, ...]:
        strangers = sorted(path for path in self._state_root.iterdir() if path.is_dir() and path.name not in keep)
        await asyncio.gather(*(Container(path).remove() for path in strangers))
        await asyncio.to_thread(sweep, self._state_root)
        return tuple(path.name for path in strangers)

    async def close(self) -> None:
        """Each container has its own shim; only the one that waits for the next goes."""
        await asyncio.gather(*self._filling)
        if self._spares is not None:
            await asyncio.to_thread(self._spares.close)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        """Beside whatever goes on: the next container is a while away."""
        if self._spares is None:
            return
        filling = asyncio.create_task(asyncio.to_thread(self._spares.fill))
        self._filling.add(filling)
        filling.add_done_callback(self._filling.discard)

    def _container(self, handle: Handle) -> Container:
        """By name below the own root, not by `ref`: a journal from elsewhere cannot make us delete another directory."""
        if not NAME.fullmatch(handle.name):
            raise _unknown(handle)
        return Container(self._state_root / handle.name, self._now_ms)

    def _check(self, launch_spec: LaunchSpec) -> None:
        if not NAME.fullmatch(launch_spec.name):
            raise LaunchRefused("not a container name", field="name", value=launch_spec.name)
        if launch_spec.gpu_uuids:
            raise LaunchRefused(
                "the sandbox passes no GPUs on",
                code="gpu_not_supported",
                field="gpu_uuids",
                value=list(launch_spec.gpu_uuids),
                hint="Use the docker executor with the NVIDIA container toolkit.",
            )

    def _what_to_run(self, launch_spec: LaunchSpec) -> tuple[Image, tuple[str, ...], str]:
        """Image, command and working directory. Only `prepare_loaded` names loaded images: jobs cannot, see `_image`."""
        command = (*launch_spec.command, *launch_spec.args)
        if not launch_spec.image.startswith(_LOADED):
            return self._image(launch_spec.image), command, launch_spec.workdir or "/"
        folder = Path(launch_spec.image.removeprefix(_LOADED))
        says = json.loads((folder / _CONFIG).read_text())
        found = oci_directory(folder / _ROOT)
        env = {**dict(found.env), **dict(item.partition("=")[::2] for item in says.get("Env") or [])}
        if not launch_spec.command:
            command = (*(says.get("Entrypoint") or ()), *(launch_spec.args or says.get("Cmd") or ()))
        workdir = launch_spec.workdir or says.get("WorkingDir") or "/"
        return replace(found, env=tuple(env.items())), command, workdir

    def _image(self, image: str) -> Image:
        if image == HOST_PYTHON:
            if not self._host_python_allowed:
                raise ImageForbidden("this node does not lend its own Python", field="image", value=image)
            return host_python()
        if not image.startswith(OCI_DIRECTORY):
            raise ImageNotFound(
                "the sandbox cannot pull images",
                field="image",
                value=image,
                hint=f"It runs {HOST_PYTHON} and unpacked images ({OCI_DIRECTORY}/path); the docker executor pulls.",
            )
        path = Path(image.removeprefix(OCI_DIRECTORY))
        resolved = path.resolve()
        if self._image_root is None or not resolved.is_relative_to(self._image_root):
            raise ImageForbidden("not below this node's image directory", field="image", value=image)
        try:
            return oci_directory(resolved)
        except TorgError as error:
            raise ImageNotFound(error.message, field="image", value=image) from error

    async def _oci_digest(self, root: Path) -> str:
        if root not in self._oci_digests:
            self._oci_digests[root] = await asyncio.to_thread(tree_digest, root)
        return self._oci_digests[root]

    def _version(self) -> str:
        try:
            isolation = self._isolation or isolation_here()
        except SandboxUnavailable as error:
            raise _translated(error) from error
        guard = "cgroups" if isolation.cgroups else "rlimits"
        version = ".".join(map(str, bwrap_version(isolation.bwrap)))
        return f"bubblewrap {version}, limits by {guard}"


def _load(archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
    image = read_image(archive)
    (folder / _ROOT).mkdir()
    unpack_image(image, folder / _ROOT, max_bytes, FIRST_HOST_ID if os.geteuid() == 0 else None)
    (folder / _ROOT).chmod(0o755)
    (folder / _CONFIG).write_text(json.dumps(image.config))
    return LoadedImage(image.digest)


def _own_root(launch_spec: LaunchSpec) -> OwnRoot | None:
    """Raises LaunchRefused for an image whose files a root of the container would not own."""
    if launch_spec.own_root is None:
        return None
    if launch_spec.image == HOST_PYTHON:
        return OwnRoot(launch_spec.own_root)
    root, user = Path(launch_spec.image.removeprefix(OCI_DIRECTORY)), ""
    if launch_spec.image.startswith(_LOADED):
        folder = Path(launch_spec.image.removeprefix(_LOADED))
        root, user = folder / _ROOT, str(json.loads((folder / _CONFIG).read_text()).get("User") or "")
    if not ids_are_shifted(root):
        raise LaunchRefused(
            "this image's files do not belong to the ids of containers with a root of their own",
            code="own_root_unavailable",
            field="image",
            value=launch_spec.image,
            hint=f"Unpack it with owners from {FIRST_HOST_ID} on, or let jobs bring it as an archive (image: file:PATH).",
        )
    try:
        uid, gid, home = user_of(user, root)
    except Invalid as error:
        raise LaunchRefused(error.message, code=error.code, field=error.field, value=error.value) from error
    return OwnRoot(launch_spec.own_root, root, uid, gid, home)


def _limits(limits: ResourceLimits) -> SandboxLimits:
    return SandboxLimits(
        memory_bytes=limits.memory_bytes,
        cpu_millis=limits.cpu_millis,
        disk_bytes=limits.disk_bytes,
        shm_bytes=limits.shm_bytes,
        pids=limits.pids,
        log_bytes=limits.log_bytes,
    )


def _chunk(piece: LogPiece) -> LogChunk:
    return LogChunk(piece.stream, piece.offset, piece.data, piece.at_ms)


def _exit(outcome: Outcome) -> Exit:
    return Exit(
        reason=ExitReason(outcome.reason),
        code=outcome.code,
        started_at_ms=outcome.started_at_ms,
        finished_at_ms=outcome.finished_at_ms,
        peak_memory_bytes=outcome.peak_memory_bytes,
        detail=outcome.detail,
    )


def _unknown(handle: Handle) -> ExecutorError:
    return ExecutorError("no such container here", code="unknown_container", field="name", value=handle.name)


def _translated(error: TorgError) -> ExecutorError:
    match error:
        case Conflict():
            kind: type[ExecutorError] = AlreadyRunning
        case Invalid():
            kind = LaunchRefused
        case SandboxUnavailable() if not isinstance(error, SandboxStartFailed):
            kind = ExecutorUnavailable
        case _:
            kind = ExecutorError
    code = None if kind is AlreadyRunning else error.code
    return kind(error.message, code=code, field=error.field, value=error.value, hint=error.hint)
