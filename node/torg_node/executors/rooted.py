"""A container engine's executor, with a sandbox beside it for containers that are root of a user namespace.

An engine maps user ids for all of its containers or for none, and few bound what a container writes into its own root directory. So
what wants a root of its own runs under bubblewrap, on the engine's image: taken out of it once, unpacked, kept while it is used. Every
handle names the executor whose container it is; nothing else remembers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

from torg_host.sandbox.images import HOST_PYTHON
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.errors import ExecutorError, LaunchRefused
from torg_node.executors.port import (
    Capabilities,
    Executor,
    Exit,
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
from torg_node.executors.sandbox import SandboxExecutor, wall_clock_ms
from torg_protocol.errors import TorgError

MAX_IMAGE_BYTES = 64 << 30
KEPT_UNUSED_S = 24 * 3600.0  # an unpacked image that no container uses


class RootedExecutor:
    """As `engine`, which it owns; `root`: a folder for unpacked images and the sandbox's state."""

    def __init__(self, engine: DockerExecutor, root: Path, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self.name, self.gives_gpus = engine.name, engine.gives_gpus
        self._engine = engine
        self._sandbox = SandboxExecutor(root / "containers", now_ms=now_ms)
        self._containers, self._images = root / "containers", root / "images"
        self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._unpacking = asyncio.Lock()

    async def start(self, launch: LaunchSpec) -> Handle:
        if launch.own_root is None:
            return await self._engine.start(launch)
        if launch.gpu_uuids:
            raise LaunchRefused(
                "a container with a root of its own gets no GPU",
                code="own_root_unavailable",
                field="gpu_uuids",
                value=list(launch.gpu_uuids),
            )
        if launch.image == HOST_PYTHON:
            return await self._sandbox.start(launch)
        image = await self._unpacked(launch.image)
        return await self._sandbox.start(replace(launch, image=image.reference))

    async def probe(self) -> Capabilities:
        return await self._engine.probe()

    async def prepare(
        self,
        image: str,
        on_progress: ProgressCallback | None = None,
        *,
        auth: RegistryAuth | None = None,
        anew: bool = False,
    ) -> PreparedImage:
        return await self._engine.prepare(image, on_progress, auth=auth, anew=anew)

    async def load_archive(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
        return await self._engine.load_archive(archive, folder, max_bytes)

    async def prepare_loaded(self, folder: Path, loaded: LoadedImage) -> PreparedImage:
        return await self._engine.prepare_loaded(folder, loaded)

    async def must_pull(self, image: str) -> bool:
        return await self._engine.must_pull(image)

    async def forget_image(self, reference: str, only_if: str | None = None) -> None:
        await self._engine.forget_image(reference, only_if)
        unpacked = self._place(
            only_if or reference
        )  # by the engine's id, which an archive's image has for its name too
        await asyncio.to_thread(shutil.rmtree, unpacked, ignore_errors=True)

    async def reattach(self, handle: Handle) -> bool:
        return await self._of(handle).reattach(handle)

    def logs(self, handle: Handle, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogChunk]:
        return self._of(handle).logs(handle, stdout_from=stdout_from, stderr_from=stderr_from)

    async def wait(self, handle: Handle) -> Exit:
        return await self._of(handle).wait(handle)

    async def run_inside(self, handle: Handle, command: InsideCommand) -> InsideProgram:
        return await self._of(handle).run_inside(handle, command)

    async def dial(self, handle: Handle, port: int) -> socket.socket:
        return await self._of(handle).dial(handle, port)

    async def open_interface(self, handle: Handle, address: IPv4Interface) -> int:
        return await self._of(handle).open_interface(handle, address)

    async def stop(self, handle: Handle, grace_ms: int) -> None:
        await self._of(handle).stop(handle, grace_ms)

    async def remove(self, handle: Handle) -> None:
        await self._of(handle).remove(handle)

    async def reap(self, keep: frozenset[str]) -> tuple[str, ...]:
        reaped = (*await self._engine.reap(keep), *await self._sandbox.reap(keep))
        await asyncio.to_thread(self._forget_unused, time.time() - KEPT_UNUSED_S)
        return tuple(sorted(reaped))

    async def close(self) -> None:
        await self._sandbox.close()
        await self._engine.close()

    # --- parts ------------------------------------------------------------------------------------------------------

    def _of(self, handle: Handle) -> Executor:
        return self._sandbox if handle.executor == self._sandbox.name else self._engine

    def _place(self, reference: str) -> Path:
        return self._images / hashlib.sha256(reference.encode()).hexdigest()

    async def _unpacked(self, reference: str) -> PreparedImage:
        """Of an image of the engine, by its id there, under which the content never changes."""
        folder = self._place(reference)
        async with self._unpacking:
            if not (folder / "ready").exists():
                await asyncio.to_thread(self._forget_unused, time.time() - KEPT_UNUSED_S)
                await self._unpack(reference, folder)
        (folder / "ready").touch()  # its use, for `_forget_unused`
        found = json.loads((folder / "ready.json").read_text())
        return await self._sandbox.prepare_loaded(folder, LoadedImage(found["digest"]))

    async def _unpack(self, reference: str, folder: Path) -> None:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        archive = folder / "image.tar"
        try:
            await self._engine.save_image(reference, archive)
            loaded = await self._sandbox.load_archive(archive, folder, MAX_IMAGE_BYTES)
            archive.unlink()
            (folder / "ready.json").write_text(json.dumps({"digest": loaded.digest}))
            (folder / "ready").touch()
        except (TorgError, OSError) as error:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise ExecutorError(f"the image could not be unpacked: {error}", code="image_not_unpacked") from error

    def _forget_unused(self, before_s: float) -> None:
        """Those last used before then, unless a container runs on them, of whatever agent: its plan says so."""
        in_use = set()
        for plan in self._containers.glob("*/plan.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                layers = json.loads(plan.read_text())["private_root"]["layers"]
                in_use |= {Path(lower).parent.name for _, lower, *_ in layers if lower}
        for folder in self._images.iterdir():
            try:
                used_at_s = (folder / "ready").stat().st_mtime
            except OSError:
                used_at_s = 0.0 if not self._unpacking.locked() else before_s
            if folder.name not in in_use and used_at_s < before_s:
                shutil.rmtree(folder, ignore_errors=True)
