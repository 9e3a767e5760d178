"""Executes one segment of a training again in our own sandbox: the job's own files and command, from the checkpoint that it claims.

Compares, too, what nodes came to that executed one; and prepares segments whose answer is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from torg_host.archive import UnpackLimits, pack, unpack
from torg_host.sandbox import CompletedRun, SandboxLimits, SandboxMount, SandboxUnavailable, run_sandboxed
from torg_marketplace.ports import BlobStore, EvaluationFailed, Planted, TookTooLong
from torg_marketplace.replay_segment import MODEL, STATE, WANTED, whole
from torg_marketplace.rules.replay import LONGEST_MS, TOLERANCE, Distance, Segment
from torg_marketplace.workers.comparison import Unsound, alter, check_sound, compare, take_over_time
from torg_protocol.errors import TorgError
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import CheckpointRef

_INSIDE = Path("/torg")
_POLL_S = 0.02
_TMP_BYTES = 256 << 20
MAX_UNPACKED_BYTES = 256 << 20  # of a checkpoint; the catalogue's largest has a hundredth of it
_LIMITS = UnpackLimits(max_files=1_000, max_bytes=MAX_UNPACKED_BYTES)
LEAST_PLANTED = 10 * TOLERANCE  # that the wrong answer differs from the right one of a planted segment


class SandboxReplayer:
    """The Replayer port. `timeout_s` bounds one segment."""

    def __init__(
        self,
        blobs: BlobStore,
        *,
        timeout_s: float = LONGEST_MS / 1000,
        kept_waiting_s: Callable[[], float | None] | None = None,
    ) -> None:
        self._blobs = blobs
        self._timeout_s = timeout_s
        self._kept_waiting_s = kept_waiting_s or kept_waiting_s_of_host

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        with _scratch() as root:
            try:
                await self._prepare(spec, segment, root)
                file, start = await self._fetch_claim(segment, model, root), root / "start" / STATE
            except _Unreadable as problem:
                return problem.distance
            found = await self._run(spec, segment, root)
            if isinstance(found, Distance):
                return found
            if not segment.number and segment.start is not None:
                await _check_leads_somewhere(found)
            return await asyncio.to_thread(compare, found, file, start)

    async def compare(self, segment: Segment, model: Digest | None, answer: Digest) -> Distance:
        with _scratch() as root:
            try:
                await self._fetch_start(segment, root / "start")
                file = await self._fetch_claim(segment, model, root)
            except _Unreadable as problem:
                return problem.distance
            if ((await self._size(answer)) or 0) > MAX_UNPACKED_BYTES:
                return Distance(None, detail=f"the answer is larger than {MAX_UNPACKED_BYTES} bytes")
            mine = root / "answer.safetensors"
            await self._fetch(answer, mine)
            if not mine.stat().st_size:
                return Distance(None, detail="the claimed checkpoint leads to no such one")
            return await asyncio.to_thread(compare, mine, file, root / "start" / STATE)

    async def plant(self, spec: JobSpec, before: Segment, segment: Segment, model: Digest | None, seed: int) -> Planted:
        if before.start is None or before.end is None or segment.start != before.end:
            raise EvaluationFailed("what comes before it begins from nothing: there is nothing to alter")
        with _scratch() as root:
            first, second = root / "first", root / "second"
            second.mkdir()
            try:
                await self._prepare(spec, before, first)
                goal = await self._fetch_claim(before, None, first)
                claimed = await self._fetch_claim(segment, model, second)
            except _Unreadable as problem:
                raise EvaluationFailed(problem.distance.detail) from problem
            try:
                await asyncio.to_thread(alter, first / "inside/checkpoints" / before.start.name / STATE, goal, seed)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise EvaluationFailed(f"{before.words}: its weights cannot be altered: {error}") from error
            written = (await self._comes_to(spec, before, first)).parent
            try:
                await asyncio.to_thread(take_over_time, goal.parent, written)
            except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise EvaluationFailed(f"{before.words}: its notes cannot be read: {error}") from error
            blob, pieces = await self._store(written, root / "planted.tar.zst")
            start = before.end.model_copy(update={"blob": blob})
            try:
                await self._prepare(spec, Segment(segment.number, start, segment.end), second)
            except _Unreadable as problem:
                raise EvaluationFailed(problem.distance.detail) from problem
            found = await self._comes_to(spec, segment, second)
            apart = await asyncio.to_thread(compare, found, claimed, second / "start" / STATE)
            if apart.value is None or apart.value < LEAST_PLANTED:
                raise EvaluationFailed(f"{segment.words}: what was claimed is too near the planted answer")
            answer = await self._blobs.write(await asyncio.to_thread(whole, found))
        return Planted(start, answer, pieces)

    async def _comes_to(self, spec: JobSpec, segment: Segment, root: Path) -> Path:
        found = await self._run(spec, segment, root)
        if isinstance(found, Distance):
            raise EvaluationFailed(f"{segment.words}: the altered checkpoint leads nowhere: {found.detail}")
        return found

    async def _store(self, folder: Path, archive: Path) -> tuple[BlobRef, tuple[BlobRef, ...]]:
        """A checkpoint, named as nodes name theirs: a large one by its pieces."""
        packed = await asyncio.to_thread(pack, folder, archive)
        blob = BlobRef(digest=Digest(packed.digest), size_bytes=packed.size_bytes)
        pieces = tuple(
            BlobRef(digest=Digest(piece.digest), size_bytes=piece.size_bytes)
            for piece in packed.pieces
            if len(packed.pieces) > 1
        )
        with archive.open("rb") as file:
            for piece in pieces or (blob,):
                await self._blobs.write(await asyncio.to_thread(file.read, piece.size_bytes))
        if pieces:
            await self._blobs.put_together(blob, pieces)
        return blob, pieces

    async def _prepare(self, spec: JobSpec, segment: Segment, root: Path) -> None:
        """Raises _Unreadable, EvaluationFailed."""
        if spec.workspace is None:
            raise EvaluationFailed("a job without a workspace cannot be replayed")
        await self._fetch_tree(spec.workspace.digest, root / "inside/work")
        (root / "inside/checkpoints").mkdir()
        (root / "inside/outputs").mkdir()
        if segment.start is not None:
            await self._fetch_start(segment, root / "start")
            try:
                shutil.copytree(root / "start", root / "inside/checkpoints" / segment.start.name)
            except (OSError, shutil.Error) as error:  # a link that leads nowhere, say
                raise _Unreadable(f"a checkpoint cannot be laid out: {error}") from error

    async def _fetch_start(self, segment: Segment, to: Path) -> None:
        """Where the lease itself began, others made: what is wrong there is not its fault. Raises _Unreadable, EvaluationFailed."""
        if segment.start is None:
            return
        try:
            await self._fetch_checkpoint(segment.start, to)
            if not segment.number:
                await asyncio.to_thread(check_sound, to / STATE)
        except _Unreadable as problem:
            if segment.number:
                raise
            raise EvaluationFailed(f"where the lease began: {problem.distance.detail}") from problem
        except Unsound as problem:
            raise EvaluationFailed(f"where the lease began: {problem}") from problem

    async def _fetch_claim(self, segment: Segment, model: Digest | None, root: Path) -> Path:
        """The file with the claimed weights. Raises _Unreadable."""
        if segment.end is not None:
            await self._fetch_checkpoint(segment.end, root / "claimed")
            return root / "claimed" / STATE
        if model is None:
            raise _Unreadable(f"there is no {MODEL} among the outputs")
        if ((await self._size(model)) or 0) > MAX_UNPACKED_BYTES:
            raise _Unreadable(f"{MODEL} is larger than {MAX_UNPACKED_BYTES} bytes")
        (root / "claimed").mkdir()
        await self._fetch(model, root / "claimed" / MODEL)
        return root / "claimed" / MODEL

    async def _fetch_checkpoint(self, checkpoint: CheckpointRef, to: Path) -> None:
        """A stranger's archive, which may be far larger than it looks. Raises _Unreadable, EvaluationFailed."""
        if checkpoint.blob.size_bytes > MAX_UNPACKED_BYTES:
            raise _Unreadable(f"a checkpoint is larger than {MAX_UNPACKED_BYTES} bytes")
        await self._fetch_tree(checkpoint.blob.digest, to, _LIMITS)

    async def _fetch_tree(self, digest: Digest, to: Path, limits: UnpackLimits | None = None) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        archive = to.parent / f".{to.name}.tar.zst"
        await self._fetch(digest, archive)
        try:
            await asyncio.to_thread(unpack, archive, to, limits)
        except TorgError as error:
            if error.code == "disk_full":  # within its limits: we have no room for it
                raise EvaluationFailed("there is no room to unpack a checkpoint") from error
            raise _Unreadable(f"a checkpoint cannot be read: {error.message}") from error
        except OSError as error:  # of names that no file system takes, say
            raise _Unreadable(f"a checkpoint cannot be unpacked: {error.strerror}") from error
        archive.unlink()

    async def _size(self, digest: Digest) -> int | None:
        try:
            return await self._blobs.size(digest)
        except (TorgError, OSError) as error:
            raise EvaluationFailed(f"the store does not answer about {digest}: {error}") from error

    async def _fetch(self, digest: Digest, to: Path) -> None:
        """Whatever a node or a client hands over was in the store when it was taken: that it cannot be had now is nobody's fault but ours.
        Raises EvaluationFailed."""
        try:
            await self._blobs.fetch_to(digest, to)
        except (TorgError, OSError) as error:
            raise EvaluationFailed(f"the store does not hand over {digest}: {error}") from error

    async def _run(self, spec: JobSpec, segment: Segment, root: Path) -> Path | Distance:
        """The file with the weights that it came to; or that it came to none."""
        inside, replayed = root / "inside", root / "replayed"
        wanted = inside / "checkpoints" / segment.end.name if segment.end is not None else None
        over_after_s = None if segment.over_after_ms is None else segment.over_after_ms / 1000
        watch = _Stopwatch(self._kept_waiting_s)
        async with self._running(spec, inside, segment.end.name if segment.end is not None else "") as running:
            while True:
                ended = running.done()
                if wanted is not None and await _taken(wanted, replayed):
                    return replayed / STATE
                if ended:
                    break
                if over_after_s is not None and watch.worked_s() >= over_after_s:
                    raise TookTooLong(
                        f"{segment.words}: not there after {over_after_s:.0f} s, of which it should take a third"
                    )
                await asyncio.wait({running}, timeout=_POLL_S)
            run = await running
        if run.succeeded and wanted is None:
            (inside / "outputs").rename(replayed)
            return replayed / MODEL
        if run.reason == "max_duration":
            raise EvaluationFailed(f"{segment.words} took longer than {self._timeout_s:.0f} s")
        return await self._came_to_nothing(spec, run, segment, root)

    @contextlib.asynccontextmanager
    async def _running(self, spec: JobSpec, inside: Path, name: str = "") -> AsyncIterator[asyncio.Task[CompletedRun]]:
        """The job, in these folders; stopped at the end. Raises EvaluationFailed where there is no sandbox."""
        for path in [inside.parent, inside, *inside.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o777 if path.is_dir() else 0o644)
        running = asyncio.create_task(self._start(spec, inside, name))
        try:
            yield running
        except SandboxUnavailable as error:
            raise EvaluationFailed(error.message) from error
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxUnavailable):
                await running

    async def _came_to_nothing(self, spec: JobSpec, run: CompletedRun, segment: Segment, root: Path) -> Distance:
        """From a claimed checkpoint an honest run goes on: if it can be run here at all. Raises EvaluationFailed."""
        said = run.stderr[-300:].decode(errors="replace")
        failed = f"{run.reason}, code {run.code}: {said}"
        if not run.succeeded:
            begins_here = segment.start is None and segment.number == 0
            if begins_here or not await self._begins(spec, root / "control"):
                raise EvaluationFailed(f"the job cannot be run here: {failed}")
        return Distance(None, detail=f"the claimed checkpoint leads to no such one: {failed}")

    async def _begins(self, spec: JobSpec, root: Path) -> bool:
        """Whether the job, from nothing, comes to a first checkpoint, or to its end."""
        await self._prepare(spec, Segment(0, None, None), root)
        checkpoints = root / "inside/checkpoints"
        async with self._running(spec, root / "inside") as running:
            while not running.done():
                if any(not path.name.startswith(".") for path in checkpoints.iterdir()):
                    return True
                await asyncio.wait({running}, timeout=_POLL_S)
            return (await running).succeeded

    async def _start(self, spec: JobSpec, inside: Path, name: str) -> CompletedRun:
        asked = spec.resources
        folders = {
            "TORG_CHECKPOINT_DIR": str(_INSIDE / "checkpoints"),
            "TORG_OUTPUT_DIR": str(_INSIDE / "outputs"),
            "TORG_PROGRESS_FILE": str(_INSIDE / "progress.jsonl"),
            WANTED: name,
        }
        limits = SandboxLimits(
            memory_bytes=asked.memory, cpu_millis=asked.cpus, disk_bytes=min(asked.disk, _TMP_BYTES), pids=256
        )
        return await run_sandboxed(
            spec.command,
            mounts=[SandboxMount(inside, str(_INSIDE), writable=True)],
            limits=limits,
            timeout_s=self._timeout_s,
            env={**spec.env, **folders},
            workdir=str(_INSIDE / "work"),
        )


class _Unreadable(Exception):
    """What the node stored is not what it must be."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.distance = Distance(None, detail=detail)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torg-replay-") as folder:
        root = Path(folder).resolve()
        root.chmod(0o755)
        yield root


async def _check_leads_somewhere(found: Path) -> None:
    """Numbers from which a training comes to no numbers (a negative variance, say) were others' work. Raises EvaluationFailed."""
    try:
        await asyncio.to_thread(check_sound, found)
    except Unsound as problem:
        raise EvaluationFailed(f"where the lease began leads to nothing: {problem}") from problem


async def _taken(wanted: Path, to: Path) -> bool:
    """Copies the checkpoint if it is complete."""
    if not wanted.is_dir():
        return False
    half = to.with_name(f".{to.name}")
    try:
        await asyncio.to_thread(shutil.copytree, wanted, half, dirs_exist_ok=True)
    except (OSError, shutil.Error):  # the job is tidying up just now: it is gone, or there in a moment
        return False
    half.rename(to)
    return True


class _Stopwatch:
    """Runs while our machine works, and not while it keeps anybody waiting for a core: what is late by that is not the node's fault."""

    def __init__(self, kept_waiting_s: Callable[[], float | None]) -> None:
        self._kept_waiting_s, self._began_s = kept_waiting_s, time.monotonic()
        self._waited_before_s = kept_waiting_s()

    def worked_s(self) -> float:
        """0 where nobody can tell."""
        waited_s = self._kept_waiting_s()
        if waited_s is None or self._waited_before_s is None:
            return 0.0
        return time.monotonic() - self._began_s - (waited_s - self._waited_before_s)


def kept_waiting_s_of_host() -> float | None:
    """Since it was started, how long anything on this host was ready to run and had no core (Linux, pressure stall information). None: it does not
    count that."""
    try:
        first = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(first.rpartition("total=")[2]) / 1e6
    except (OSError, IndexError, ValueError):
        return None
