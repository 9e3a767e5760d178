"""Run the tasks of a job: start each when it is its turn, restart it as it asks, stop what is left when the job ends.

What starts and what stops is decided in `torg_node.task_rules`, again after each change. Every container is a row of the journal: an agent
that was killed takes up running ones, and what ended meanwhile counts as ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace

from torg_node import task_rules
from torg_node.clock import on_line
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Exit, ExitReason, Handle
from torg_node.lease import Lease, LeaseEnded
from torg_node.steps.ports import PortWatch
from torg_node.steps.start_container import say_started
from torg_node.steps.streams import follow_logs
from torg_node.steps.task_containers import filled_in, keep_logs, launch_of_task, proxy_of_task, read_results
from torg_node.steps.watch import watched
from torg_protocol.expressions import Unresolved
from torg_protocol.messages import TaskMoved
from torg_protocol.results import ResultValue
from torg_protocol.states import EndReason
from torg_protocol.tasks import Task, TaskState, shares_of

_FAILURE_GRACE_MS = 10_000  # to stop the others in, when a task has failed or all that count have ended


class RunTasks:
    name = "run the tasks"

    async def do(self, lease: Lease) -> None:
        """Returns when the job has ended, with `lease.exit` set."""
        crew = Crew(lease)
        try:
            await crew.take_over()
            if lease.started_at_ms is None:
                lease.check_not_stopped()
            await crew.act()
            ended = asyncio.Event()
            lease.exit = await watched(lease, crew.run_to_end(), crew.stop, ended, crew.ports.tell(ended))
        finally:
            await crew.detach()

    async def undo(self, lease: Lease) -> None:
        executor = lease.node.executor
        for run in lease.node.journal.tasks.runs(lease.id):
            if run.handle is not None:
                await executor.stop(run.handle, 0)
                await executor.remove(run.handle)


@dataclass
class Running:
    """One container of a task."""

    task: Task
    run: int
    handle: Handle
    waiter: asyncio.Task[Exit] = field(init=False)
    is_stopping: bool = False


class Crew:
    """The tasks of one lease, and where each stands. Everything happens in one coroutine; only waiting for containers is done beside it."""

    def __init__(self, lease: Lease) -> None:
        self._lease, self._journal = lease, lease.node.journal
        self._tasks = lease.spec.tasks
        self._shares = shares_of(self._tasks, lease.spec.resources.cpus, lease.spec.resources.memory)
        self._states = dict.fromkeys((task.name for task in self._tasks), TaskState.WAITING)
        self._runs = dict.fromkeys(self._states, 0)
        self._last: dict[str, Exit] = {}
        self._results = self._journal.tasks.results(lease.id)
        self._running: dict[str, Running] = {}
        self.ports = PortWatch(lease)
        self._stopping = asyncio.Event()
        self._time_is_up = False

    # --- the story --------------------------------------------------------------------------------------------------

    async def take_over(self) -> None:
        """What the journal knows of an agent before this one. Raises LeaseEnded for a container of which nobody knows whether it ran."""
        self._states |= self._journal.tasks.states(self._lease.id)
        newest = {run.task: run for run in self._journal.tasks.runs(self._lease.id)}
        for task in self._tasks:
            if (run := newest.get(task.name)) is None:
                continue
            self._runs[task.name] = run.run
            if run.handle is None and run.exit is None:
                raise LeaseEnded(EndReason.START_FAILED, f"the agent was killed while it started task {task.name}")
            if run.handle is not None:
                self._note_start(run.handle.started_at_ms)
            if run.exit is not None:
                self._last[task.name] = run.exit
            elif run.handle is not None:
                await self._take_up(task, run.run, run.handle)
        if self._lease.stop_reason is not None:
            self._stopping.set()
        for run in newest.values():
            task = self._task(run.task)
            if run.exit is not None and self._states[task.name] in {TaskState.WAITING, TaskState.RUNNING}:
                await self._on_end(task, run.run, run.exit)

    async def run_to_end(self) -> Exit:
        while not await self.act():
            await self._next_news()
        started_at_ms = self._lease.started_at_ms
        if started_at_ms is None:
            raise LeaseEnded(EndReason.START_FAILED, "no task was started")
        return task_rules.exit_of_job(
            self._tasks,
            self._states,
            self._last,
            started_at_ms=started_at_ms,
            ended_at_ms=self._lease.node.steady_ms(),
            time_is_up=self._time_is_up,
        )

    async def act(self) -> bool:
        """Does what is to be done now, until that changes nothing further. True: the job is over."""
        while True:
            self.ports.news.clear()
            decision = task_rules.decide(
                self._tasks, self._states, must_end=self._must_end, ready=self.ports.ready_tasks
            )
            for task in decision.skip:
                state = TaskState.SKIPPED if self._runs[task.name] == 0 else TaskState.STOPPED
                await self._move(task, state, self._last.get(task.name))
            for task in decision.stop:
                await self._stop_one(task)
            for task in decision.start[:1]:  # what it leads to may change who starts next
                await self._start(task)
            if decision.over or not (decision.start or decision.skip):
                return decision.over

    async def stop(self) -> None:
        """The lease is to stop: `run_to_end` sees to it."""
        self._stopping.set()

    async def detach(self) -> None:
        """Containers go on; nobody here waits for them any more."""
        waiters = [running.waiter for running in self._running.values()]
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def _must_end(self) -> bool:
        killed = any(ended.reason is ExitReason.KILLED for ended in self._last.values())
        return self._stopping.is_set() or self._time_is_up or killed

    @property
    def _deadline_ms(self) -> int:
        started_at_ms = self._lease.started_at_ms
        begun = self._lease.node.steady_ms() if started_at_ms is None else started_at_ms
        return begun + self._lease.grant.max_duration_ms

    def _task(self, name: str) -> Task:
        return next(task for task in self._tasks if task.name == name)

    async def _start(self, task: Task) -> None:
        """The intent is journalled first: a start that the agent does not survive is not repeated."""
        lease, tasks, run = self._lease, self._journal.tasks, self._runs[task.name] + 1
        left_ms = self._deadline_ms - lease.node.steady_ms()
        if left_ms <= 0:
            self._time_is_up = True
            return
        tasks.intend_run(lease.id, task.name, run)
        self._runs[task.name] = run
        try:
            with contextlib.ExitStack() as held:
                proxy = (
                    held.enter_context(await asyncio.to_thread(proxy_of_task, lease, task, run))
                    if lease.has_egress
                    else None
                )
                limit_ms = min(task.timeout or left_ms, left_ms)
                filled = filled_in(lease, task, self._results)
                launch = launch_of_task(lease, filled, run, self._shares[task.name], limit_ms, proxy)
                handle = await lease.node.executor.start(launch)
        except Unresolved as error:
            await self._on_not_startable(task, run, str(error))
            return
        except ExecutorError as error:
            await self._on_start_failed(task, run, error)
            return
        tasks.set_handle(lease.id, task.name, run, handle)
        self._note_start(handle.started_at_ms)
        await self._take_up(task, run, handle)

    async def _on_start_failed(self, task: Task, run: int, error: ExecutorError) -> None:
        """A command that is not there is the job's fault: before anything ran it ends the lease, later it fails the task."""
        if error.code != "command_not_found":
            raise LeaseEnded(EndReason.START_FAILED, f"task {task.name}: {error}") from error
        if self._lease.started_at_ms is None:
            raise LeaseEnded(EndReason.INPUT_INVALID, f"task {task.name}: {error}") from error
        await self._on_not_startable(task, run, str(error))

    async def _on_not_startable(self, task: Task, run: int, why: str) -> None:
        now_ms = self._lease.node.steady_ms()
        ended = Exit(ExitReason.EXITED, task_rules.NOT_STARTED, now_ms, now_ms, None, why)
        self._journal.tasks.set_exit(self._lease.id, task.name, run, ended)
        await self._on_end(task, run, ended)

    def _note_start(self, started_at_ms: int) -> None:
        known = self._lease.tasks_started_at_ms
        self._lease.tasks_started_at_ms = started_at_ms if known is None else min(known, started_at_ms)

    async def _take_up(self, task: Task, run: int, handle: Handle) -> None:
        """Follows a container that runs, or that ran when the agent before this one died."""
        if not await self._lease.node.executor.reattach(handle):
            raise LeaseEnded(EndReason.START_FAILED, f"the container of task {task.name} is gone")
        await say_started(self._lease, self._lease.started_at_ms or handle.started_at_ms)
        if self._states[task.name] is not TaskState.RUNNING:
            await self._move(task, TaskState.RUNNING)
        running = Running(task, run, handle)
        self._lease.task_handles[task.name] = handle
        running.waiter = asyncio.create_task(self._wait_for(running), name=f"{self._lease.id} {task.name}")
        self._running[task.name] = running

    async def _wait_for(self, running: Running) -> Exit:
        """Its end, with everything that it wrote passed on and kept."""
        lease, ended = self._lease, asyncio.Event()
        following = asyncio.create_task(
            follow_logs(lease, running.handle, ended, task=running.task.name, run=running.run)
        )
        watching = asyncio.create_task(self.ports.watch(running.task.name, running.handle, ended))
        try:
            ended_by_host_clock = await lease.node.executor.wait(running.handle)
            found = on_line(ended_by_host_clock, running.handle.started_at_ms)
            ended.set()
            await asyncio.gather(following, watching)
        finally:
            for beside in (following, watching):
                beside.cancel()
            await asyncio.gather(following, watching, return_exceptions=True)
        await keep_logs(lease, running.task.name, running.run, running.handle)
        return found

    async def _stop_one(self, task: Task) -> None:
        grace_ms = self._lease.stop_grace_ms if self._lease.stop_reason is not None else _FAILURE_GRACE_MS
        running = self._running.get(task.name)
        if running is not None and not running.is_stopping:
            running.is_stopping = True
            await self._lease.node.executor.stop(running.handle, grace_ms)

    async def _next_news(self) -> None:
        """Until a container ends, the lease is to stop, time is up, or a pause before a restart is over."""
        now_ms = self._lease.node.steady_ms()
        pauses = {
            name: self._last[name].finished_at_ms + task_rules.pause_ms(self._runs[name])
            for name, state in self._states.items()
            if state is TaskState.RESTARTING
        }
        until_ms = min([self._deadline_ms, *pauses.values()])
        wakes = [asyncio.ensure_future(self.ports.news.wait())]
        if not self._stopping.is_set():
            wakes.append(asyncio.ensure_future(self._stopping.wait()))
        waiters = [running.waiter for running in self._running.values()]
        try:
            timeout_s = None if self._must_end else max(0, until_ms - now_ms) / 1000
            await asyncio.wait([*waiters, *wakes], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wake in wakes:
                wake.cancel()
        for running in [item for item in self._running.values() if item.waiter.done()]:
            await self._on_container_ended(running)
        now_ms = self._lease.node.steady_ms()
        self._time_is_up = self._time_is_up or now_ms >= self._deadline_ms
        for name, at_ms in pauses.items():
            if now_ms >= at_ms and not self._must_end and self._states[name] is TaskState.RESTARTING:
                await self._start(self._task(name))

    async def _on_container_ended(self, running: Running) -> None:
        task, ended = running.task, running.waiter.result()
        del self._running[task.name]
        self._lease.task_handles.pop(task.name, None)
        if ended.reason is ExitReason.MAX_DURATION:
            if task.timeout is not None and running.handle.started_at_ms + task.timeout < self._deadline_ms:
                detail = f"it ran into its timeout of {task.timeout / 1000:g} s"
                ended = replace(ended, reason=ExitReason.EXITED, code=task_rules.TIMED_OUT, detail=detail)
            else:
                self._time_is_up = True
        self._journal.tasks.set_exit(self._lease.id, task.name, running.run, ended)
        await self._on_end(task, running.run, ended)
        await self._lease.node.executor.remove(running.handle)

    async def _on_end(self, task: Task, run: int, ended: Exit) -> None:
        self._last[task.name] = ended
        ending = task_rules.is_ending(self._tasks, self._states, must_end=self._must_end)
        notes = [ended.detail] if ended.detail else []
        if task.results:
            self._results[task.name], problems = await read_results(self._lease, task, run)
            self._journal.tasks.set_results(self._lease.id, task.name, self._results[task.name])
            notes += problems
        await self._move(task, task_rules.state_after(task, ended, run, ending=ending), ended, "; ".join(notes))

    def _told_results(self, task: Task) -> dict[str, ResultValue]:
        """A sealed job's are for its own tasks."""
        return self._results.get(task.name, {}) if self._lease.spec.sealed is None else {}

    async def _move(self, task: Task, state: TaskState, ended: Exit | None = None, note: str = "") -> None:
        """Where it stands and that it was said are one write: each move is told once, also by the agent after this one."""
        self._states[task.name] = state
        body = TaskMoved(
            task=task.name,
            state=state,
            run=self._runs[task.name],
            exit_code=ended.code if ended is not None else None,
            detail=note[:2_000],
            results=self._told_results(task) if ended is not None else {},
        )
        lease = self._lease
        with self._journal.at_once():
            self._journal.tasks.set_state(lease.id, task.name, state)
            event = self._journal.add_event(lease.id, lease.grant.fence, lease.node.now_ms(), body)
        await lease.node.send(event)
