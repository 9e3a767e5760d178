"""Tasks of a job: several containers that share one lease on one node, its disk, its GPUs and its bill.

    tasks:
      - name: prepare
        command: [python, prepare.py]
      - name: train
        command: [python, train.py]
        depends_on: [prepare]

**When a task starts.** Groups are stages: they run one after the other, in the order in which the file first names them; a group has
ended when its tasks have. Tasks of one group run at the same time, each as soon as what it depends on allows. Without `group` a task
belongs to the group "main", so that a file without groups is a plain graph of dependencies.

**What they share.** All tasks see the same /work (the workspace), /output, /checkpoint and /torg, and the volumes that they mount. CPU and
memory are the job's: a task may ask for its part, and the tasks of a group that do not ask share what is left evenly. Each task has a
process tree, a temporary directory and a network of its own.

**How the job ends.** It succeeds when every task has succeeded, may fail, or runs in the background and was stopped at the end. When a
task fails and may not, the others are stopped, those that wait are skipped, and its exit code is the job's. What was useful is billed
from the start of the first container to the end of the last one.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from torg_protocol.expressions import RESULT_NAME, references
from torg_protocol.inputs import JOB_FOLDERS, MAX_INPUTS, Input
from torg_protocol.ports import MAX_PORTS, Port, clashes
from torg_protocol.quantities import CpuMillis, DurationMs, SizeBytes
from torg_protocol.results import MAX_RESULTS, Result, ShortResult
from torg_protocol.strict import Strict, check_container_path, check_env

BLOB_IMAGE = "blob:"  # and a digest: an image archive that the client has stored
HOST_PYTHON = "host-python"  # the node's own Python: an image that needs no registry, and has no command of its own
NODE_IMAGE = "oci-dir:"  # and a folder: an image that a node's owner has unpacked there
TASK_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MAIN_GROUP = "main"
MAX_TASKS = 64
MIN_TASK_MEMORY_BYTES = 16 << 20
_DAY_MS = 86_400_000


def is_pulled(image: str) -> bool:
    """Whether it comes from a registry, and so needs a node with a container engine."""
    return image != HOST_PYTHON and not image.startswith((BLOB_IMAGE, NODE_IMAGE))


class TaskState(enum.StrEnum):
    WAITING = "waiting"  # for its group's turn, or for what it depends on
    RUNNING = "running"
    RESTARTING = "restarting"  # its container ended, and its restart policy starts another
    SUCCEEDED = "succeeded"  # exit code 0
    FAILED = "failed"
    STOPPED = "stopped"  # because the job ended: it ran in the background, or another task failed
    SKIPPED = "skipped"  # never started, because the job ended before its turn

    @property
    def has_ended(self) -> bool:
        return self not in {TaskState.WAITING, TaskState.RUNNING, TaskState.RESTARTING}


class Restart(Strict):
    """What follows when a task's container ends by itself. `on-failure`: another one after an exit code other than 0, at most
    `max_restarts` times. `always`: after success too, until the job ends. Pauses double from half a second to half a minute."""

    policy: Literal["never", "on-failure", "always"] = "never"
    max_restarts: int = Field(default=3, ge=1, le=100)  # of on-failure


class Dependency(Strict):
    """`succeeded`: the other task has ended with exit code 0, or has failed and may. `started`: its container runs, or ran. `ready`: all of its
    ports pass their health checks, or it has succeeded."""

    task: str = Field(pattern=TASK_NAME)
    until: Literal["started", "ready", "succeeded"] = "succeeded"


class VolumeMount(Strict):
    """A volume of the job at `path` in this task's container."""

    volume: str = Field(pattern=TASK_NAME)
    path: str = Field(max_length=512)
    read_only: bool = False

    @field_validator("path")
    @classmethod
    def _is_container_path(cls, path: str) -> str:
        return check_container_path(path)


def _short(key: str, model: type[Strict]) -> BeforeValidator:
    """Lets a bare text stand for a mapping with only this key; the JSON Schema knows both."""
    return BeforeValidator(
        lambda value: {key: value} if isinstance(value, str) else value, json_schema_input_type=model | str
    )


class Task(Strict):
    """One container of a job.

    `name`: unique in the job; in logs, states and container names.
    `image`, default the job's. `command` replaces its entrypoint, `args` its default arguments; without either it runs as it is.
    `env`: added to the job's; the same name here wins. `workdir`: default the workspace; "image": the image's own.
    `group`, `depends_on`: when it starts, see above. `depends_on: [a]` is short for `[{task: a, until: succeeded}]`.
    `restart`: `restart: on-failure` is short for `{policy: on-failure}`.
    `timeout`: of each start of it; a task that runs longer is stopped and has failed with exit code 124.
    `may_fail`: its failure does not fail the job, and what depends on it goes on.
    `background`: for servers and monitors; stopped when the other tasks of the job have ended, and whatever its exit code is then, the job has
    not failed. It holds up no later group. It still fails the job when it fails before, unless it may.
    `gpu`: whether it sees the job's GPUs.
    `cpus`, `memory`: its part of the job's; default an even share of what the group's other tasks leave.
    `volumes`: which of the job's volumes it sees, and where.
    `inputs`: what the node fetches for this task alone (torg_protocol.inputs); the job's own inputs it sees too.
    `ports`: on which it serves, in a network of its own: two tasks may serve the same one (torg_protocol.ports).
    `results`: what is cut out of its output at its end, whatever its exit code; `KEY: PATTERN` is short for `{regex: PATTERN}`. They are in the
    job's view. In command, args and env of a later task `${{ tasks.NAME.results.KEY }}` stands for them (torg_protocol.expressions); a task
    whose expression has no value fails with exit code 127.
    """

    name: str = Field(pattern=TASK_NAME)
    image: str | None = Field(default=None, min_length=1, max_length=512)
    command: tuple[str, ...] = Field(default=(), max_length=256)
    args: tuple[str, ...] = Field(default=(), max_length=1024)
    env: dict[str, str] = Field(default_factory=dict, max_length=256)
    workdir: str | None = Field(default=None, pattern=r"^(/[^\x00]{0,511}|image)$")
    group: str = Field(default=MAIN_GROUP, min_length=1, max_length=63)
    depends_on: tuple[Annotated[Dependency, _short("task", Dependency)], ...] = Field(default=(), max_length=MAX_TASKS)
    restart: Annotated[Restart, _short("policy", Restart)] = Restart()
    timeout: DurationMs | None = Field(default=None, ge=1_000, le=30 * _DAY_MS)
    may_fail: bool = False
    background: bool = False
    gpu: bool = True
    cpus: CpuMillis | None = Field(default=None, gt=0)
    memory: SizeBytes | None = Field(default=None, ge=MIN_TASK_MEMORY_BYTES)
    volumes: tuple[VolumeMount, ...] = Field(default=(), max_length=32)
    inputs: tuple[Input, ...] = Field(default=(), max_length=MAX_INPUTS)
    results: dict[str, ShortResult] = Field(default_factory=dict, max_length=MAX_RESULTS)
    # Came later: left out of the wire form while empty, so that older specs keep their digests.
    ports: tuple[Port, ...] = Field(default=(), max_length=MAX_PORTS, exclude_if=operator.not_)

    @field_validator("ports")
    @classmethod
    def _ports(cls, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        if problem := clashes(ports):
            raise ValueError(problem)
        return ports

    @field_validator("results")
    @classmethod
    def _result_names(cls, results: dict[str, Result]) -> dict[str, Result]:
        for name in results:
            if re.fullmatch(RESULT_NAME, name) is None:
                raise ValueError(f'"{name}" is not a result\'s name: letters, digits, "_" and "-"')
        return results

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        return check_env(env)

    @model_validator(mode="after")
    def _places(self) -> Task:
        seen: set[str] = set()
        for item in self.inputs:
            if item.path in seen:
                raise ValueError(f"inputs: two things at {item.path}")
            seen.add(item.path)
        for mount in self.volumes:
            if any(mount.path == folder or mount.path.startswith(f"{folder}/") for folder in JOB_FOLDERS):
                raise ValueError(f"volumes: {mount.path} is in a folder that every task of the job sees already")
            if mount.path in seen:
                raise ValueError(f"volumes: two things at {mount.path}")
            seen.add(mount.path)
        return self


def texts_of(task: Task) -> Iterator[str]:
    """Everything in which an expression may stand."""
    yield from (*task.command, *task.args, *task.env.values())


def groups_of(tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """Groups in the order of their first task; within a group in the file's order."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.group, []).append(task)
    return [tuple(group) for group in found.values()]


def shares_of(tasks: Sequence[Task], cpu_millis: int, memory_bytes: int) -> dict[str, tuple[int, int]]:
    """By task: thousandths of a core, and bytes of memory. What tasks that may run at the same time get adds up to no more than the
    job's: of each task that may run beside it, one that asks leaves less, and one that does not ask gets as much as this one."""
    before = _ends_before(tasks)
    shares = {}
    for task in tasks:
        beside = [
            other
            for other in tasks
            if other is not task and other.name not in before[task.name] and task.name not in before[other.name]
        ]
        shares[task.name] = (
            _share(task.cpus, [other.cpus for other in beside], cpu_millis),
            _share(task.memory, [other.memory for other in beside], memory_bytes),
        )
    return shares


def _share(asked: int | None, beside: Sequence[int | None], total: int) -> int:
    """Negative or nothing when those beside ask for too much."""
    left = total - sum(other for other in beside if other is not None)
    if asked is not None:
        return asked if asked <= left else left - asked
    return left // (1 + sum(other is None for other in beside))


def _ends_before(tasks: Sequence[Task]) -> dict[str, set[str]]:
    """By task: those that have ended for sure when it starts."""
    before: dict[str, set[str]] = {task.name: set() for task in tasks}
    earlier: set[str] = set()
    for group in groups_of(tasks):
        for task in group:
            before[task.name] |= earlier
        earlier |= {task.name for task in group if not task.background}
    waits = {task.name: [item.task for item in task.depends_on if item.until == "succeeded"] for task in tasks}
    for _ in tasks:  # as often as a chain can be long
        for task in tasks:
            for other in waits[task.name]:
                before[task.name] |= {other} | before.get(other, set())
    return before


def task_problems(
    tasks: Sequence[Task], image: str, volumes: Iterable[str], cpu_millis: int, memory_bytes: int
) -> list[tuple[str, str]]:
    """What is wrong between tasks: fields, as they are written in a spec, and sentences."""
    names = [task.name for task in tasks]
    twice = [
        (f"tasks.{number}.name", f'another task is called "{name}" too')
        for number, name in enumerate(names)
        if name in names[:number]
    ]
    if twice:
        return twice
    problems = [problem for number, task in enumerate(tasks) for problem in _relations(f"tasks.{number}", task, tasks)]
    problems += [
        (f"tasks.{number}", problem) for number, task in enumerate(tasks) for problem in _expressions(task, tasks)
    ]
    problems += [
        (f"tasks.{number}.command", "is missing")
        for number, task in enumerate(tasks)
        if not task.command and (task.image or image) == HOST_PYTHON
    ]
    known = set(volumes)
    problems += [
        (f"tasks.{number}.volumes.{place}.volume", f'"{mount.volume}" is not among the job\'s volumes')
        for number, task in enumerate(tasks)
        for place, mount in enumerate(task.volumes)
        if mount.volume not in known
    ]
    if cycle := _cycle(tasks):
        problems.append(("tasks", f"these wait for each other: {' -> '.join(cycle)}"))
    if tasks and all(task.background for task in groups_of(tasks)[-1]):
        problems.append(("tasks", "those of the last group all run in the background: nothing there would end the job"))
    return problems or list(_share_problems(tasks, cpu_millis, memory_bytes))


def _relations(field: str, task: Task, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    order = {other.name: number for number, group in enumerate(groups_of(tasks)) for other in group}
    by_name: Mapping[str, Task] = {other.name: other for other in tasks}
    for place, dependency in enumerate(task.depends_on):
        where, other = f"{field}.depends_on.{place}", by_name.get(dependency.task)
        if other is None or other is task:
            yield where, f'"{dependency.task}" is no other task of this job'
        elif order[other.name] > order[task.name]:
            yield where, f'"{other.name}" is of a later group'
        elif dependency.until == "ready" and not other.ports:
            yield where, f'"{other.name}" declares no ports that could be ready; write until: started'
        elif other.background and dependency.until == "succeeded":
            yield where, f'"{other.name}" runs in the background until the job ends; write until: started'


def _expressions(task: Task, tasks: Sequence[Task]) -> Iterator[str]:
    """A result is there when its task has ended: one of an earlier group, or one that is waited for."""
    try:
        wanted = {item.text: item for text in texts_of(task) for item in references(text) if item.task is not None}
    except ValueError as error:
        yield str(error)
        return
    keys = {other.name: other.results.keys() for other in tasks}
    before = _ends_before(tasks)[task.name]
    for item in wanted.values():
        if item.task not in keys or item.key not in keys[item.task]:
            yield f"{item}: no task gives this result"
        elif item.task not in before:
            yield f"{item} is not there yet when {task.name} starts; write depends_on: [{item.task}]"


def _share_problems(tasks: Sequence[Task], cpu_millis: int, memory_bytes: int) -> Iterator[tuple[str, str]]:
    for number, task in enumerate(tasks):
        cpus, memory = shares_of(tasks, cpu_millis, memory_bytes)[task.name]
        if cpus <= 0:
            yield f"tasks.{number}.cpus", "the job's cpus do not suffice for it and those that may run at the same time"
        if memory < MIN_TASK_MEMORY_BYTES:
            yield (
                f"tasks.{number}.memory",
                "the job's memory does not leave it 16MiB beside those that may run at the same time; raise resources.memory",
            )


def _cycle(tasks: Sequence[Task]) -> list[str]:
    """Tasks that wait for each other, or nothing."""
    waits = {task.name: [item.task for item in task.depends_on] for task in tasks}
    done: set[str] = set()

    def visit(task: str, path: list[str]) -> list[str]:
        if task in path:
            return [*path[path.index(task) :], task]
        if task in done or task not in waits:
            return []
        for other in waits[task]:
            if found := visit(other, [*path, task]):
                return found
        done.add(task)
        return []

    return next((found for task in tasks if (found := visit(task.name, []))), [])
