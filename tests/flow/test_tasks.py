"""Tasks of a job of several, as the marketplace hears of them: states in order of the spec, logs by task and run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import Client, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.rows import leases_of_job
from torg_marketplace.flow.stream import on_log
from torg_marketplace.flow.views import job_log
from torg_protocol.api import JobView
from torg_protocol.errors import Invalid
from torg_protocol.messages import LogLines, Reported, TaskLog, TaskMoved
from torg_protocol.states import EndReason, JobState
from torg_protocol.tasks import TaskState

TASKS = [{"name": "second", "command": ["x"], "depends_on": ["first"]}, {"name": "first", "command": ["x"]}]


async def running(world: World) -> tuple[Client, Node, JobView]:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec(command=[], tasks=TASKS))
    await match_pending(world.market)
    await node.accept_and_start()
    return client, node, job


async def log(node: Node, task: str, offset: int, text: str, *, run: int = 1, stream: Any = "stdout") -> None:
    grant = node.lease.grant
    lines = LogLines(
        lease_id=grant.lease_id, fence=grant.fence, at_ms=0, stream=stream, offset=offset, text=text, task=task, run=run
    )
    async with node.world.market.transaction() as unit:
        await on_log(unit, node.id, lines)


async def text_of(client: Client, job: JobView, task: str | None = None) -> str:
    async with client.world.market.reading() as unit:
        return await job_log(unit, client.account, job.job_id, "stdout", task=task)


async def test_states_are_shown_in_the_specs_order_and_each_move_is_an_event(world: World) -> None:
    client, node, job = await running(world)
    await node.ok(TaskMoved(task="first", state=TaskState.RUNNING, run=1))
    await node.ok(TaskMoved(task="first", state=TaskState.FAILED, run=1, exit_code=3, detail="why"))
    view = (await client.job(job.job_id)).leases[0]

    assert [(task.task, task.state, task.run, task.exit_code) for task in view.tasks] == [
        ("second", TaskState.WAITING, 0, None),
        ("first", TaskState.FAILED, 1, 3),
    ]
    moves = [event.data for event in await client.events(job.job_id) if event.kind == "task"]
    assert [(move["task"], move["from"], move["state"]) for move in moves] == [
        ("first", "waiting", "running"),
        ("first", "running", "failed"),
    ]


async def test_a_task_that_the_job_does_not_have_is_refused(world: World) -> None:
    client, node, job = await running(world)

    assert await node.refused(TaskMoved(task="third", state=TaskState.RUNNING, run=1)) == "task_unknown"
    with pytest.raises(Invalid) as refused:
        await log(node, "third", 0, "x")
    assert refused.value.code == "task_unknown"
    assert await text_of(client, job) == ""


async def test_logs_of_tasks_are_whole_lines_with_names_and_each_byte_comes_once(world: World) -> None:
    client, node, job = await running(world)
    await log(node, "first", 0, "one\ntw")
    await log(node, "second", 0, "uno\n")
    await log(node, "first", 0, "one\ntwo\n")  # again, and more: an agent that was restarted begins anew
    await log(node, "first", 0, "err\n", stream="stderr")

    assert await text_of(client, job) == "first  | one\nsecond | uno\nfirst  | two\n"
    assert await text_of(client, job, "first") == "one\ntwo\n"


async def test_a_new_run_begins_at_zero_and_late_lines_of_the_old_one_are_dropped(world: World) -> None:
    client, node, job = await running(world)
    await log(node, "first", 0, "run 1\n")
    await log(node, "first", 0, "run 2\n", run=2)
    await log(node, "first", 6, "late\n", run=1)
    await log(node, "first", 6, "more\n", run=2)

    assert await text_of(client, job, "first") == "run 1\nrun 2\nmore\n"


async def test_a_report_keeps_the_whole_log_of_every_task(world: World) -> None:
    client, node, job = await running(world)
    whole = world.blobs.put(b"all of it")
    await node.exit()
    logs = (TaskLog(task="first", run=2, stream="stderr", blob=whole),)
    await node.ok(Reported(reason=EndReason.COMPLETED, exit_code=0, outputs=(), task_logs=logs))

    assert (await client.job(job.job_id)).state in {JobState.VERIFYING, JobState.SUCCEEDED}
    node.read()
    async with world.market.reading() as unit:
        (lease,) = await leases_of_job(unit, job.job_id)
    assert lease.logs == {"first.2/stderr": whole.model_dump(mode="json")}
