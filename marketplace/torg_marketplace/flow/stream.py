"""What a running lease tells besides its events: progress and live logs. Best effort, bounded, never a reason to fail."""

from __future__ import annotations

import json
from typing import Any

from torg_marketplace.flow.rows import job_row, node_row, spec_of
from torg_marketplace.flow.tasks import check_task, keep_log_position, log_position
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.events import add_job_event, prune_events, which
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.errors import Conflict, NotFound, TooLarge
from torg_protocol.event_kinds import WrittenKind
from torg_protocol.ids import NodeId
from torg_protocol.messages import LogLines, PortsState, Progress
from torg_protocol.states import LIVE_LEASE_STATES

MAX_LINE_BYTES = 64 << 10  # of one log message
_PRUNE_EVERY = 100  # progress messages


async def on_progress(unit: Unit, node_id: NodeId, progress: Progress) -> None:
    """The newest progress is the job's; the newest `progress_rows` are its history. Raises NotFound, Conflict lease_stale or
    TooLarge; the edge answers with Refused and goes on."""
    lease = await _live_lease(unit, node_id, progress.lease_id, progress.fence)
    size = len(json.dumps(progress.data))
    if size > unit.policy.progress_bytes:
        raise TooLarge("this progress object is too large", code="progress_too_large", field="data", value=size)
    (await node_row(unit, node_id)).last_seen_ms = unit.now_ms
    job = await job_row(unit, lease.job_id)
    job.progress = {"kind": progress.kind, **which(lease), **progress.data}
    kind: WrittenKind = "preparing" if progress.kind == "preparing" else "progress"
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind=kind, data=progress.data, at_ms=unit.now_ms)
    lease.progress_rows += 1
    if lease.progress_rows % _PRUNE_EVERY == 0:
        await prune_events(unit.session, lease, kind, unit.policy.progress_rows)
    unit.wake(f"job:{job.job_id}")


async def on_ports(unit: Unit, node_id: NodeId, state: PortsState) -> None:
    """What is said of ports that the job does not declare is dropped; no news is no event."""
    lease = await _live_lease(unit, node_id, state.lease_id, state.fence)
    job = await job_row(unit, lease.job_id)
    declared = {(task, port.port) for task, port in spec_of(job).declared_ports}
    ports = [port.model_dump() for port in state.ports if (port.task, port.port) in declared]
    if ports == lease.ports:
        return
    lease.ports = ports
    data = {"ports": ports, "ready": all(port["ready"] for port in ports), **which(lease)}
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="ports", data=data, at_ms=unit.now_ms)
    lease.progress_rows += 1
    if lease.progress_rows % _PRUNE_EVERY == 0:
        await prune_events(unit.session, lease, "ports", unit.policy.progress_rows)
    unit.wake(f"job:{job.job_id}")


async def on_log(unit: Unit, node_id: NodeId, lines: LogLines) -> None:
    """Appends what is new by its byte offset: repeated and overlapping messages leave each byte once. Beyond
    `live_log_bytes` the live log ends with a note; the whole log comes with the report."""
    lease = await _live_lease(unit, node_id, lines.lease_id, lines.fence)
    if len(lines.text.encode()) > MAX_LINE_BYTES:
        raise TooLarge(
            "this log message is too large", code="log_too_large", field="text", value=len(lines.text.encode())
        )
    job = await job_row(unit, lease.job_id)
    if lines.task is not None:
        check_task(job, lines.task)
    expected, kept = _position(lease, lines)
    text = _fresh_part(lines, expected)
    if not text or kept >= unit.policy.live_log_bytes:
        return
    offset = max(expected, lines.offset)
    end = lines.offset + _source_bytes(lines.text)
    kept += end - offset
    if kept >= unit.policy.live_log_bytes:
        text += "\n[the live log ends here; the whole log comes with the result]\n"
    _keep_position(lease, lines, end, kept)
    data: dict[str, Any] = {"stream": lines.stream, "offset": offset, "text": text, **which(lease)}
    if lines.task is not None:
        data |= {"task": lines.task, "run": lines.run}
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="log", data=data, at_ms=unit.now_ms)
    unit.wake(f"job:{job.job_id}")


def _position(lease: LeaseRow, lines: LogLines) -> tuple[int, int]:
    """The next offset that is expected, and how many bytes of this stream are kept."""
    if lines.task is not None:
        return log_position(lease, lines)
    expected = lease.stdout_bytes if lines.stream == "stdout" else lease.stderr_bytes
    return expected, expected


def _keep_position(lease: LeaseRow, lines: LogLines, end: int, kept: int) -> None:
    if lines.task is not None:
        keep_log_position(lease, lines, end, kept)
    elif lines.stream == "stdout":
        lease.stdout_bytes = end
    else:
        lease.stderr_bytes = end


async def _live_lease(unit: Unit, node_id: NodeId, lease_id: str, fence: int) -> LeaseRow:
    lease = await unit.session.get(LeaseRow, lease_id)
    if lease is None or lease.node_id != node_id:
        raise NotFound("no such lease of yours", code="lease_unknown", field="lease_id", value=lease_id)
    if lease.fence != fence or lease.state not in LIVE_LEASE_STATES:
        raise Conflict("this lease is over", code="lease_stale", field="lease_id", value=lease_id)
    return lease


def _fresh_part(lines: LogLines, expected: int) -> str:
    if lines.offset >= expected:
        return lines.text
    known = expected - lines.offset
    return lines.text.encode()[known:].decode(errors="replace") if known < _source_bytes(lines.text) else ""


def _source_bytes(text: str) -> int:
    """At most as many bytes as the text was decoded from: a replacement character stands for at least one."""
    replaced = text.count("\N{REPLACEMENT CHARACTER}")
    return len(text.encode()) - 2 * replaced
