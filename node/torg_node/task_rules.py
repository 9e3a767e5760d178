"""Which tasks start, stop and restart, and how a job of several tasks has ended. Pure: states in, decisions out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torg_node.executors.port import Exit, ExitReason
from torg_protocol.tasks import Task, TaskState, groups_of

TIMED_OUT, NOT_STARTED = 124, 127  # exit codes as timeout(1) and the shell have them
_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 500, 30_000

States = Mapping[str, TaskState]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. `over`: nothing runs, and nothing will."""

    start: tuple[Task, ...] = ()
    stop: tuple[Task, ...] = ()
    skip: tuple[Task, ...] = ()  # waiting ones that never start, restarting ones that do not go on
    over: bool = False


def decide(tasks: Sequence[Task], states: States, *, must_end: bool, ready: Collection[str] = frozenset()) -> Decision:
    """`ready`: tasks whose ports are. `must_end`: the lease was told to stop or its time is up. Without it the job ends when a task fails that may not, or when no task but
    background ones is left. Safe to ask again at any time: what is done already is not asked for."""
    if not is_ending(tasks, states, must_end=must_end):
        turn = _whose_turn(tasks, states)
        return Decision(start=tuple(task for task in turn if _may_start(task, tasks, states, ready)))
    running = tuple(task for task in tasks if states[task.name] is TaskState.RUNNING)
    idle = {TaskState.WAITING, TaskState.RESTARTING}
    return Decision(stop=running, skip=tuple(task for task in tasks if states[task.name] in idle), over=not running)


def is_ending(tasks: Sequence[Task], states: States, *, must_end: bool) -> bool:
    has_failed = any(states[task.name] is TaskState.FAILED and not task.may_fail for task in tasks)
    return must_end or has_failed or all(states[task.name].has_ended for task in tasks if not task.background)


def state_after(task: Task, ended: Exit, run: int, *, ending: bool) -> TaskState:
    """Of a container that ended. `ending`: the job was to end already, so that a failure may come of that."""
    succeeded = ended.reason is ExitReason.EXITED and ended.code == 0
    if ending:
        return TaskState.SUCCEEDED if succeeded and not task.background else TaskState.STOPPED
    match task.restart.policy:
        case "always":
            return TaskState.RESTARTING
        case "on-failure" if not succeeded and run <= task.restart.max_restarts:
            return TaskState.RESTARTING
        case _:
            return TaskState.SUCCEEDED if succeeded else TaskState.FAILED


def pause_ms(run: int) -> int:
    """Before the next start, after `run` of them."""
    return min(_LONGEST_PAUSE_MS, _FIRST_PAUSE_MS << min(run - 1, 16))


def exit_of_job(
    tasks: Sequence[Task],
    states: States,
    last: Mapping[str, Exit],
    *,
    started_at_ms: int,
    ended_at_ms: int,
    time_is_up: bool,
) -> Exit:
    """How the job ended, as if it had been one container. `last`: of each task that ran, how its newest container ended."""
    failures = [
        (last[task.name].finished_at_ms, task.name)
        for task in tasks
        if states[task.name] is TaskState.FAILED and not task.may_fail
    ]
    peaks = [ended.peak_memory_bytes for ended in last.values() if ended.peak_memory_bytes is not None]

    def ended(reason: ExitReason, code: int | None, detail: str) -> Exit:
        until = max([item.finished_at_ms for item in last.values()], default=ended_at_ms)
        return Exit(reason, code, started_at_ms, max(until, started_at_ms), max(peaks, default=None), detail)

    killed = next((name for name, item in last.items() if item.reason is ExitReason.KILLED), None)
    if killed is not None:
        return ended(ExitReason.KILLED, None, f"task {killed}: {last[killed].detail}")
    if failures:
        name = min(failures)[1]
        first = last[name]
        return ended(first.reason, first.code, f"task {name}: {first.detail or f'exit code {first.code}'}")
    if time_is_up:
        return ended(ExitReason.MAX_DURATION, None, "")
    if any(
        states[task.name] is not TaskState.SUCCEEDED and not task.background and not task.may_fail for task in tasks
    ):
        return ended(ExitReason.STOPPED, None, "")
    return ended(ExitReason.EXITED, 0, "")


def _whose_turn(tasks: Sequence[Task], states: States) -> list[Task]:
    """Tasks of the groups up to the first that has not ended."""
    found: list[Task] = []
    for group in groups_of(tasks):
        found += group
        if not all(task.background or states[task.name].has_ended for task in group):
            break
    return found


def _may_start(task: Task, tasks: Sequence[Task], states: States, ready: Collection[str]) -> bool:
    if states[task.name] is not TaskState.WAITING:
        return False
    by_name = {other.name: other for other in tasks}
    return all(_is_met(by_name[item.task], item.until, states[item.task], ready) for item in task.depends_on)


def _is_met(other: Task, until: str, state: TaskState, ready: Collection[str]) -> bool:
    if until == "started":
        return state is not TaskState.WAITING
    if until == "ready" and other.name in ready:
        return True
    return state is TaskState.SUCCEEDED or (state is TaskState.FAILED and other.may_fail)
