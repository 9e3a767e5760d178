"""The containers of tasks: what each is started with, and where its log is kept once it is gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from torg_node.executors.port import Handle, LaunchSpec, LogChunk, Mount
from torg_node.lease import Lease
from torg_node.sealing import for_client
from torg_node.steps.fetch_inputs import input_mounts
from torg_node.steps.make_workspace import VOLUMES
from torg_node.steps.start_container import ROOTS, launch_of, proxy_of, workdir_in
from torg_node.task_results import results_of
from torg_protocol.expressions import fill_in, fill_in_list
from torg_protocol.messages import MAX_TASK_LOGS, TaskLog
from torg_protocol.results import ResultValue
from torg_protocol.tasks import Task

_EGRESS = "egress"
_STREAMS = ("stdout", "stderr")
_PIECE_BYTES = 64 << 10
_KEPT_RUNS = 8  # of which the logs go with the report


def proxy_of_task(lease: Lease, task: Task, run: int) -> socket.socket:
    """Every container has a proxy of its own, with its own counters; `egress_folders` knows them all."""
    folder = lease.folder / _EGRESS / f"{task.name}.{run}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return proxy_of(lease, folder)


def egress_folders(lease: Lease) -> list[Path]:
    """Where the proxies of this lease count."""
    return [lease.folder, *sorted((lease.folder / _EGRESS).glob("*"))]


def filled_in(lease: Lease, task: Task, results: Mapping[str, Mapping[str, ResultValue]]) -> Task:
    """With values in place of its expressions. Raises Unresolved."""
    grant = lease.grant
    facts = {
        "job.id": grant.job_id,
        "job.attempt": str(grant.attempt),
        "node.id": grant.node,
        "client.id": grant.client,
    }
    return task.model_copy(
        update={
            "command": fill_in_list(task.command, facts, results),
            "args": fill_in_list(task.args, facts, results),
            "env": {name: fill_in(text, facts, results) for name, text in task.env.items()},
        }
    )


def launch_of_task(
    lease: Lease, task: Task, run: int, share: tuple[int, int], max_duration_ms: int, proxy: socket.socket | None
) -> LaunchSpec:
    """Like a job of one command, with its part of the machine and the volumes that it mounts. `share`: see `shares_of`."""
    image = task.image or lease.spec.image
    whole = launch_of(lease, lease.image_of(image), proxy)
    cpu_millis, memory_bytes = share
    volumes = tuple(
        Mount(
            lease.files / VOLUMES / mount.volume,
            mount.path,
            writable=not (mount.read_only or lease.spec.volumes[mount.volume].read_only),
        )
        for mount in task.volumes
    )
    return replace(
        whole,
        name=f"{lease.container_name}.{task.name}.{run}",
        command=task.command,
        args=task.args,
        env={**whole.env, **task.env, "TORG_TASK": task.name},
        workdir=workdir_in(task.workdir, image),
        mounts=(*whole.mounts, *input_mounts(lease, task.name)[len(lease.spec.inputs) :], *volumes),
        limits=replace(whole.limits, cpu_millis=cpu_millis, memory_bytes=memory_bytes),
        max_duration_ms=max_duration_ms,
        gpu_uuids=whole.gpu_uuids if task.gpu else (),
        labels={**whole.labels, "torg.task": task.name},
        own_root=lease.files / ROOTS / f"task-{task.name}" if lease.spec.root else None,
    )


async def keep_logs(lease: Lease, task: str, run: int, handle: Handle) -> None:
    """Writes both (bounded) streams of a container that ended to this lease's folder. Safe to repeat; those of old runs go."""
    folder = _folder(lease)
    folder.mkdir(mode=0o700, exist_ok=True)
    files = {stream: _file(folder, task, run, stream).open("wb") for stream in _STREAMS}
    try:
        async for chunk in lease.node.executor.logs(handle):
            if chunk.offset and not files[chunk.stream].tell():  # its start was dropped
                _start_file(_file(folder, task, run, chunk.stream)).write_text(str(chunk.offset))
            files[chunk.stream].write(chunk.data)
    finally:
        for file in files.values():
            file.close()
    for stream in _STREAMS:
        old = _file(folder, task, run - _KEPT_RUNS, stream)
        for path in (old, _start_file(old)):
            path.unlink(missing_ok=True)


async def kept_log(lease: Lease, task: str, run: int) -> AsyncIterator[LogChunk]:
    """What `keep_logs` has kept of it, as the executor gave it."""
    for stream in _STREAMS:
        path = _file(_folder(lease), task, run, stream)
        if not await asyncio.to_thread(_is_filled, path):
            continue
        begin = _start_file(path)
        offset = int(begin.read_text()) if begin.exists() else 0
        at_ms = path.stat().st_mtime_ns // 1_000_000
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield LogChunk(stream, offset, data, at_ms)
                offset += len(data)


async def read_results(lease: Lease, task: Task, run: int) -> tuple[dict[str, ResultValue], list[str]]:
    """From the kept log of a container that ended."""
    streams = {stream: _file(_folder(lease), task.name, run, stream) for stream in _STREAMS}
    return await asyncio.to_thread(results_of, task.results, streams)


async def stored_logs(lease: Lease) -> tuple[TaskLog, ...]:
    """Every kept log that is not empty, as a blob."""
    found: list[TaskLog] = []
    for run in lease.node.journal.tasks.runs(lease.id):
        for stream in _STREAMS:
            path = _file(_folder(lease), run.task, run.run, stream)
            if len(found) < MAX_TASK_LOGS and await asyncio.to_thread(_is_filled, path):
                async with for_client(lease, path) as kept:
                    blob = await lease.node.blobs.store(kept)
                found.append(TaskLog.model_validate({"task": run.task, "run": run.run, "stream": stream, "blob": blob}))
    return tuple(found)


def _folder(lease: Lease) -> Path:
    return lease.folder / "task-logs"


def _file(folder: Path, task: str, run: int, stream: str) -> Path:
    return folder / f"{task}.{run}.{stream}"


def _start_file(path: Path) -> Path:
    """Where it is said at which byte of the stream a kept log begins, when that is not the first."""
    return path.with_name(f"{path.name}.from")


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
