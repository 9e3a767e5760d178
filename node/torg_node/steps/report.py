"""Report: how it ended, with everything that the marketplace needs already stored, so that this node may vanish now."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from torg_node.egress.process import read_use
from torg_node.executors.port import Exit, ExitReason
from torg_node.lease import Lease, LeaseEnded
from torg_node.sealing import for_client
from torg_node.steps.collect_outputs import left_out_in_words
from torg_node.steps.energy import cpu_energy_used_mj, energy_used_mj
from torg_node.steps.streams import follow_logs, pass_on
from torg_node.steps.task_containers import egress_folders, kept_log, stored_logs
from torg_node.usage import claim_usage
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import Exited, Released, Reported
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import ResourceUse

_REST_WITHIN_S = 60.0
_REQUEUED = frozenset(
    {
        EndReason.DRAINED,
        EndReason.PREEMPTED,
        EndReason.HOST_PROTECTION,
        EndReason.EXPOSURE_LIMIT,
        EndReason.GANG_ENDED,
    }
)


class Report:
    name = "report"

    async def do(self, lease: Lease) -> None:
        ended = lease.exit
        if ended is None:
            raise LeaseEnded(EndReason.START_FAILED, "the container did not run")
        reason = end_reason(ended, lease.stop_reason)
        journal = lease.node.journal
        if not journal.has_said(lease.id, ["exited"]):
            await lease.say(
                Exited(
                    reason=reason,
                    exit_code=ended.code,
                    started_at_ms=ended.started_at_ms,
                    finished_at_ms=ended.finished_at_ms,
                    peak_memory_bytes=ended.peak_memory_bytes,
                    detail="; ".join(filter(None, (ended.detail, left_out_in_words(lease.left_out)))),
                    use=await _use(lease),
                )
            )
            await claim_usage(lease, ended.started_at_ms, ended.finished_at_ms, final=True)
        if not journal.has_said(lease.id, ["reported", "released"]):
            await lease.say(await self._last_word(lease, ended, reason))
        lease.set_state(LeaseState.REPORTED, reason)

    async def undo(self, lease: Lease) -> None:
        """What was said stays said."""

    async def _last_word(self, lease: Lease, ended: Exit, reason: EndReason) -> Reported | Released:
        if reason in _REQUEUED:
            return Released(reason=reason, detail=ended.detail)
        there = [output.path for output in lease.outputs]
        missing = missing_outputs(lease.spec, there) if lease.hands_over else ()
        if reason is EndReason.COMPLETED and missing:
            reason = EndReason.OUTPUT_MISSING
        logs = {name: await self._store_log(lease, name) for name in ("stdout", "stderr")}
        await _send_rest_of_logs(lease)
        return Reported(
            reason=reason,
            exit_code=ended.code,
            outputs=tuple(lease.outputs),
            missing_outputs=missing,
            stdout=logs["stdout"],
            stderr=logs["stderr"],
            task_logs=await stored_logs(lease),
        )

    async def _store_log(self, lease: Lease, stream: str) -> BlobRef | None:
        """The whole (bounded) stream as a blob; None when it is empty."""
        if lease.handle is None:
            return None
        path: Path = lease.folder / f"{stream}.log"
        with path.open("wb") as file:
            async for chunk in lease.node.executor.logs(lease.handle):
                if chunk.stream == stream:
                    file.write(chunk.data)
        if not path.stat().st_size:
            return None
        async with for_client(lease, path) as kept:
            return await lease.node.blobs.store(kept)


async def _send_rest_of_logs(lease: Lease) -> None:
    """What was written while the marketplace was away, now that it is back; it drops what it has already."""
    if not lease.log_was_cut or lease.spec.sealed is not None:
        return
    ended = asyncio.Event()
    with contextlib.suppress(TimeoutError):  # the whole log is stored anyway
        async with asyncio.timeout(_REST_WITHIN_S):
            if lease.handle is not None:
                await follow_logs(lease, lease.handle, ended)
            for item in lease.node.journal.tasks.runs(lease.id):
                await pass_on(lease, kept_log(lease, item.task, item.run), ended, {"task": item.task, "run": item.run})


async def _use(lease: Lease) -> ResourceUse | None:
    """None when nothing was measured."""
    found = [use for folder in egress_folders(lease) if (use := read_use(folder)) is not None]
    measured = ResourceUse(
        egress_sent_bytes=sum(use.sent_bytes for use in found) if found else None,
        egress_received_bytes=sum(use.received_bytes for use in found) if found else None,
        gpu_energy_mj=await energy_used_mj(lease),
        cpu_energy_mj=await cpu_energy_used_mj(lease),
    )
    return measured if measured != ResourceUse() else None


def end_reason(ended: Exit, stop_reason: EndReason | None) -> EndReason:
    """Why the lease ended, from how the container ended and what it was asked."""
    match ended.reason:
        case ExitReason.OOM:
            return EndReason.OOM
        case ExitReason.DISK_FULL:
            return EndReason.DISK_FULL
        case ExitReason.MAX_DURATION:
            return EndReason.MAX_DURATION
        case ExitReason.STOPPED:
            return stop_reason or EndReason.HOST_PROTECTION
        case ExitReason.KILLED:
            return EndReason.HOST_PROTECTION
        case ExitReason.EXITED:
            if stop_reason is not None and ended.code != 0:
                return stop_reason
            return EndReason.COMPLETED if ended.code == 0 else EndReason.FAILED_EXIT


def missing_outputs(spec: JobSpec, there: list[str]) -> tuple[str, ...]:
    """Declared outputs (files, or folders with files in them) that the job did not write."""
    return tuple(
        path
        for path in spec.outputs
        if path not in there and not any(name.startswith(path.rstrip("/") + "/") for name in there)
    )
