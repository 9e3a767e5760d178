"""Tasks of a job of several: where each stands, as its node tells."""

from __future__ import annotations

from typing import Any

from torg_marketplace.flow.rows import spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.events import add_job_event
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.api import TaskView
from torg_protocol.errors import Invalid
from torg_protocol.messages import LogLines, TaskMoved
from torg_protocol.tasks import TaskState

_STARTED = frozenset({TaskState.RUNNING})


async def on_task_moved(unit: Unit, lease: LeaseRow, job: JobRow, body: TaskMoved) -> None:
    """Raises Invalid for a task that the spec does not have."""
    check_task(job, body.task)
    before = TaskView.model_validate(lease.tasks[body.task]) if body.task in lease.tasks else None
    view = TaskView(
        task=body.task,
        state=body.state,
        run=body.run,
        exit_code=body.exit_code,
        started_at_ms=unit.now_ms if body.state in _STARTED else (before.started_at_ms if before else None),
        ended_at_ms=unit.now_ms if body.state.has_ended and body.run > 0 else None,
        detail=body.detail,
        results=body.results,
    )
    lease.tasks = {**lease.tasks, body.task: view.wire()}
    data: dict[str, Any] = {"task": body.task, "state": body.state, "run": body.run, "attempt": lease.attempt}
    data |= {"from": before.state if before else TaskState.WAITING, "exit_code": body.exit_code, "detail": body.detail}
    if body.results:
        data["results"] = body.wire()["results"]
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="task", data=data, at_ms=unit.now_ms)


def check_task(job: JobRow, name: str) -> None:
    if all(task.name != name for task in spec_of(job).tasks):
        raise Invalid("the job has no such task", code="task_unknown", field="task", value=name)


def task_views(lease: LeaseRow, job: JobRow) -> tuple[TaskView, ...]:
    """In the spec's order; those of which nothing was heard wait."""
    names = [task.name for task in spec_of(job).tasks]
    waiting = {name: TaskView(task=name, state=TaskState.WAITING) for name in names}
    known = {name: TaskView.model_validate(view) for name, view in lease.tasks.items()}
    return tuple((waiting | known)[name] for name in names)


def log_position(lease: LeaseRow, lines: LogLines) -> tuple[int, int]:
    """The next offset that is expected of this stream of a task, and how many bytes of it are kept in all. Lines of an older run
    than the newest are expected beyond their end: nothing of them is new."""
    run, offset, total = lease.task_log_bytes.get(_stream(lines), (0, 0, 0))
    if lines.run < run:
        return lines.offset + len(lines.text.encode()), total
    return (offset if lines.run == run else 0), total


def keep_log_position(lease: LeaseRow, lines: LogLines, end: int, total: int) -> None:
    lease.task_log_bytes = {**lease.task_log_bytes, _stream(lines): [lines.run, end, total]}


def _stream(lines: LogLines) -> str:
    return f"{lines.task}/{lines.stream}"
