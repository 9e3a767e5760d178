"""Executes one segment of a training again in our own sandbox: the job's own files and command, from the checkpoint that it claims."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from torg_host.archive import unpack
from torg_host.sandbox import CompletedRun, SandboxLimits, SandboxMount, SandboxUnavailable, run_sandboxed
from torg_marketplace.ports import BlobStore, EvaluationFailed
from torg_marketplace.rules.replay import Distance, Segment
from torg_protocol.errors import TorgError
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec

_STATE, _MODEL = "state.safetensors", "model.safetensors"
_MODEL_PREFIXES = ("state.model.", "model.")
_INSIDE = Path("/torg")
_POLL_S = 0.02
_TMP_BYTES = 256 << 20


class SandboxReplayer:
    """The Replayer port. `timeout_s` bounds one segment."""

    def __init__(self, blobs: BlobStore, *, timeout_s: float = 900.0) -> None:
        self._blobs = blobs
        self._timeout_s = timeout_s

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        if spec.workspace is None:
            raise EvaluationFailed("a job without a workspace cannot be replayed")
        with tempfile.TemporaryDirectory(prefix="torg-replay-") as scratch:
            root = Path(scratch).resolve()
            try:
                await self._fetch_tree(spec.workspace.digest, root / "inside/work")
                (root / "inside/checkpoints").mkdir()
                (root / "inside/outputs").mkdir()
                if segment.start is not None:
                    await self._fetch_tree(segment.start.blob.digest, root / "start")
                    shutil.copytree(root / "start", root / "inside/checkpoints" / segment.start.name)
                if segment.end is not None:
                    await self._fetch_tree(segment.end.blob.digest, root / "claimed")
                elif model is not None:
                    (root / "claimed").mkdir()
                    await self._blobs.fetch_to(model, root / "claimed" / _MODEL)
                else:
                    return Distance(None, detail=f"there is no {_MODEL} among the outputs")
            except TorgError as error:  # an archive that cannot be unpacked is the node's
                return Distance(None, detail=f"a checkpoint cannot be read: {error.message}")
            return await self._run(spec, segment, root)

    async def _fetch_tree(self, digest: Digest, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        archive = to.parent / f".{to.name}.tar.zst"
        await self._blobs.fetch_to(digest, archive)
        await asyncio.to_thread(unpack, archive, to)
        archive.unlink()

    async def _run(self, spec: JobSpec, segment: Segment, root: Path) -> Distance:
        inside, replayed = root / "inside", root / "replayed"
        for path in [root, inside, *inside.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o644)
        running = asyncio.create_task(self._start(spec, inside))
        try:
            if segment.end is not None:
                await _until_there(inside / "checkpoints" / segment.end.name, replayed, running)
            if not replayed.exists():
                run = await running
                if run.succeeded and segment.end is None:
                    (inside / "outputs").rename(replayed)
                elif run.reason == "max_duration":
                    raise EvaluationFailed(f"{segment.words} took longer than {self._timeout_s:.0f} s")
                else:
                    return _came_to_nothing(run, segment)
        except SandboxUnavailable as error:
            raise EvaluationFailed(error.message) from error
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxUnavailable):
                await running
        file = _STATE if segment.end is not None else _MODEL
        return await asyncio.to_thread(compare, replayed / file, root / "claimed" / file, root / "start" / _STATE)

    async def _start(self, spec: JobSpec, inside: Path) -> CompletedRun:
        asked = spec.resources
        folders = {
            "TORG_CHECKPOINT_DIR": str(_INSIDE / "checkpoints"),
            "TORG_OUTPUT_DIR": str(_INSIDE / "outputs"),
            "TORG_PROGRESS_FILE": str(_INSIDE / "progress.jsonl"),
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


def compare(replayed: Path, claimed: Path, start: Path) -> Distance:
    """Relative step distance over the model's weights; without a start, relative to the weights themselves."""
    try:
        theirs, mine = load_file(claimed), load_file(replayed)
        before = load_file(start) if start.exists() else {}
    except (SafetensorError, OSError, TypeError) as error:
        return Distance(None, detail=f"the claimed weights cannot be read: {error}")
    a, b = _weights(mine), _weights(theirs)
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return Distance(None, detail="the claimed weights are of another model")
    first = _weights(before)
    gone = sum(float(np.square(b[name] - first.get(name, np.zeros_like(b[name]))).sum()) for name in b)
    off = sum(float(np.square(a[name] - b[name]).sum()) for name in b)
    if not np.isfinite(gone) or not np.isfinite(off):
        return Distance(None, detail="the claimed weights are not all numbers")
    if off == 0:
        return Distance(0.0, bit_equal=True)
    return Distance(float(np.sqrt(off / gone)) if gone else 1.0)


def _weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floating ones of the model, by their names in it; all, when none is marked as such (a bare model file)."""
    floating = {name: value.astype(np.float64) for name, value in tensors.items() if value.dtype.kind == "f"}
    for prefix in _MODEL_PREFIXES:
        found = {name.removeprefix(prefix): value for name, value in floating.items() if name.startswith(prefix)}
        if found:
            return found
    return floating


async def _until_there(wanted: Path, to: Path, running: asyncio.Task[CompletedRun]) -> None:
    """Copies the checkpoint as soon as it is complete; returns without when the run has ended."""
    while True:
        ended = running.done()
        if wanted.is_dir():
            with contextlib.suppress(
                OSError, shutil.Error
            ):  # the job is tidying up just now: it is gone, or there in a moment
                await asyncio.to_thread(shutil.copytree, wanted, to, dirs_exist_ok=True)
                return
        if ended:
            return
        await asyncio.wait({running}, timeout=_POLL_S)


def _came_to_nothing(run: CompletedRun, segment: Segment) -> Distance:
    """From a claimed checkpoint an honest run goes on. From nothing it is no node's fault that it does not."""
    said = run.stderr[-300:].decode(errors="replace")
    if segment.start is None and segment.number == 0 and not run.succeeded:
        raise EvaluationFailed(f"the job cannot be run here: {run.reason}, code {run.code}: {said}")
    return Distance(None, detail=f"the claimed checkpoint leads to no such one: {run.reason}, code {run.code}: {said}")
