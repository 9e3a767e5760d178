"""One rental on this host: its folder, its bounded disk, its container, its two logs, its outputs.

The container outlives the agent; a restarted one goes on by the handle in the book. Nothing is ever started twice: an intent without
a handle means that the agent died while it started the container, and then it is not started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from torg_host.archive import UnpackLimits, pack, sha256_file, unpack
from torg_host.disk import QuotaDisk
from torg_node.cache import Cache
from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound
from torg_node.executors.port import (
    Executor,
    Exit,
    ExitReason,
    Handle,
    LaunchSpec,
    Mount,
    PreparedImage,
    ResourceLimits,
)
from torg_node.lease import CHECKPOINT, OUTPUT, TORG, WORK
from torg_node.pulls import prepare_image
from torg_node.rental.book import RentalBook, RentalEntry
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_node.steps.make_workspace import give_to_job
from torg_node.steps.start_container import ROOTS, workdir_in
from torg_protocol.errors import TorgError
from torg_protocol.ids import Digest, LeaseId
from torg_protocol.rentals import RentalEnd, RentalOutputs, RentalTerms

STREAMS = ("stdout", "stderr")
_FOLDERS = (("work", WORK), ("checkpoint", CHECKPOINT), ("output", OUTPUT), ("torg", TORG))
_READY = ".ready"


class CannotRun(Exception):
    """The container did not start: nothing is owed."""


@dataclass(frozen=True, slots=True)
class RentalHost:
    """What the rentals of this node share."""

    folder: Path
    executor: Executor
    reservations: Reservations
    book: RentalBook
    settings: Settings


async def _tell_nobody(step: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
    """Of a rental that is being prepared nobody asks how far it is."""


class RentalContainer:
    def __init__(self, host: RentalHost, terms: RentalTerms) -> None:
        self._host, self._terms = host, terms
        self.folder = host.folder / terms.rental_id
        self._files = self.folder / "disk" / "files"
        self._following: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return container_name(self._terms.rental_id)

    @property
    def workspace(self) -> Path:
        """The client's files as they came."""
        return self.folder / "workspace.tar.zst"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs.tar.zst"

    def log(self, stream: str) -> Path:
        return self.folder / f"{stream}.log"

    async def prepare(self) -> PreparedImage:
        """Image, disk, files. Safe to repeat. Raises CannotRun."""
        spec = self._terms.spec
        try:
            settings = self._host.settings
            cache = Cache(settings.cache_path, settings.cache_bytes)
            image = await prepare_image(spec.image, self._host.executor, cache, settings, _tell_nobody)
            await asyncio.to_thread(self._disk().open)
            if not (self.folder / _READY).exists():
                await asyncio.to_thread(self._lay_out)
        except (ImageNotFound, ImageForbidden, ExecutorError, OSError, TorgError) as error:
            raise CannotRun(str(error)) from error
        return image

    async def start(self, entry: RentalEntry, image: PreparedImage) -> Handle:
        """Once, whatever happens to this agent meanwhile. Raises CannotRun."""
        if entry.starting:
            raise CannotRun("the agent was killed while it started the container")
        self._host.book.intend_start(entry.id)
        try:
            handle = await self._host.executor.start(self._launch(image))
        except ExecutorError as error:
            raise CannotRun(str(error)) from error
        self._host.book.started(entry.id, handle)
        return handle

    def follow(self, handle: Handle) -> None:
        """Copies both logs to the rental's folder, from where the last agent stopped."""
        self._following = asyncio.create_task(self._copy_logs(handle))

    async def collect(self) -> RentalOutputs | None:
        """After the end: the logs to their last byte, and the output folder as one archive; None when there is nothing in it."""
        if self._following is not None:
            with contextlib.suppress(ExecutorError, OSError):
                await self._following
        folder = self._files / "output"
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        try:
            packed = await asyncio.to_thread(pack, folder, self.outputs, ignore=False, skip_odd=True)
            digest = await asyncio.to_thread(sha256_file, self.outputs)  # clients check the bytes, not a list of pieces
        except (OSError, TorgError):
            return None
        return RentalOutputs(digest=Digest(digest), size_bytes=packed.size_bytes)

    async def detach(self) -> None:
        """The agent ends; the container goes on."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def clean_up(self, handle: Handle | None) -> None:
        """Container, disk and reservation go; logs and outputs stay. Safe to repeat."""
        if handle is not None:
            with contextlib.suppress(ExecutorError):
                await self._host.executor.stop(handle, 0)
                await self._host.executor.remove(handle)
        with contextlib.suppress(TorgError, OSError):
            await asyncio.to_thread(self._disk().remove)
        self.workspace.unlink(missing_ok=True)
        self._host.reservations.release(LeaseId(self._terms.rental_id))

    def delete_files(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _disk(self) -> QuotaDisk:
        blanks = self._host.settings.blanks_path
        return QuotaDisk(self.folder / "disk", self._terms.spec.resources.disk, blanks=blanks)

    def _lay_out(self) -> None:
        for name, _ in _FOLDERS:
            (self._files / name).mkdir(exist_ok=True)
        if self._terms.spec.workspace is not None:
            work = self._files / "work"
            shutil.rmtree(work)
            unpack(self.workspace, work, UnpackLimits(max_bytes=self._terms.spec.resources.disk))
        give_to_job(self._files)
        (self.folder / _READY).touch()

    def _launch(self, image: PreparedImage) -> LaunchSpec:
        spec, resources = self._terms.spec, self._terms.spec.resources
        assignment = self._host.reservations.assignment(LeaseId(self._terms.rental_id))
        home = {} if spec.root else {"HOME": WORK}
        env = {
            **spec.env,
            **home,
            "TORG_CHECKPOINT_DIR": CHECKPOINT,
            "TORG_OUTPUT_DIR": OUTPUT,
            "TORG_PROGRESS_FILE": f"{TORG}/progress.jsonl",
            "TORG_JOB_ID": self._terms.rental_id,
        }
        return LaunchSpec(
            name=self.name,
            image=image.reference,
            command=spec.command,
            args=spec.args,
            env=env,
            workdir=workdir_in(spec.workdir, spec.image),
            mounts=tuple(Mount(self._files / name, target, writable=True) for name, target in _FOLDERS),
            limits=ResourceLimits(
                memory_bytes=resources.memory,
                cpu_millis=resources.cpus,
                disk_bytes=resources.disk,
                shm_bytes=resources.shm,
            ),
            max_duration_ms=spec.limits.max_duration,
            gpu_uuids=assignment.gpu_uuids,
            cpus=assignment.cpus,
            labels={"torg.rental": self._terms.rental_id},
            own_root=self._files / ROOTS / "job" if spec.root else None,
        )

    async def _copy_logs(self, handle: Handle) -> None:
        there = {name: self.log(name).stat().st_size if self.log(name).exists() else 0 for name in STREAMS}
        files = {name: self.log(name).open("r+b" if self.log(name).exists() else "w+b") for name in STREAMS}
        try:
            async for chunk in self._host.executor.logs(
                handle, stdout_from=there["stdout"], stderr_from=there["stderr"]
            ):
                file = files[chunk.stream]
                file.seek(chunk.offset)  # a piece that the container's bounded log has dropped stays a gap
                file.write(chunk.data)
                file.flush()
        finally:
            for file in files.values():
                file.close()


def container_name(rental_id: str) -> str:
    return rental_id.replace("_", "-")


def why_ended(ended: Exit, asked: RentalEnd | None) -> RentalEnd:
    """From how the container ended and what it was asked."""
    match ended.reason:
        case ExitReason.OOM:
            return RentalEnd.OOM
        case ExitReason.DISK_FULL:
            return RentalEnd.DISK_FULL
        case ExitReason.MAX_DURATION:
            return RentalEnd.MAX_DURATION
        case ExitReason.STOPPED:
            return asked or RentalEnd.HOST
        case ExitReason.KILLED:
            return RentalEnd.HOST
        case ExitReason.EXITED:
            if asked is not None and ended.code != 0:
                return asked
            return RentalEnd.COMPLETED if ended.code == 0 else RentalEnd.FAILED_EXIT
