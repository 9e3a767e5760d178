"""Jobs of several tasks, with real processes and containers: order, sharing, failures, restarts, and an agent that is killed in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scripts.market_processes import call, script
from tests.support.small_market import SmallMarket, submit_raw
from torg.client import AsyncClient
from torg_protocol.api import JobView
from torg_protocol.states import EndReason, JobState
from torg_protocol.tasks import TaskState
from torg_protocol.usage import verify_receipt

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]


def python(name: str, code: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "command": ["python", "-u", "-c", code], **fields}


async def submit(client: AsyncClient, *tasks: dict[str, Any], **fields: Any) -> JobView:
    return await submit_raw(
        client, {"tasks": list(tasks), "resources": {"memory": "256MiB", "disk": "32MiB"}, **fields}
    )


async def run(client: AsyncClient, *tasks: dict[str, Any], **fields: Any) -> JobView:
    job = await submit(client, *tasks, **fields)
    return await client.wait(job.job_id)


def states(job: JobView) -> dict[str, str]:
    return {task.task: str(task.state) for task in job.leases[-1].tasks}


WRITE = "open('/data/x', 'w').write('from a'); open('y', 'w').write('in work'); print('wrote')"
READ = """
import os
assert (open('/data/x').read(), open('y').read(), os.environ['TORG_TASK']) == ('from a', 'in work', 'read')
try:
    open('/data/z', 'w')
except OSError as error:
    print('read-only:', error.errno)
open('/output/answer.txt', 'w').write('42')
"""


async def test_a_task_reads_what_the_one_before_wrote_and_the_job_is_paid_once(
    client: AsyncClient, tmp_path: Path
) -> None:
    job = await run(
        client,
        python("read", READ, depends_on=["write"], volumes=[{"volume": "data", "path": "/data", "read_only": True}]),
        python("write", WRITE, volumes=[{"volume": "data", "path": "/data"}]),
        volumes={"data": {}},
        outputs=["answer.txt"],
    )

    assert (job.state, job.reason, states(job)) == (
        JobState.SUCCEEDED,
        EndReason.COMPLETED,
        {"read": "succeeded", "write": "succeeded"},
    )
    assert await client.logs(job.job_id) == "write | wrote\nread  | read-only: 30\n"
    assert await client.logs(job.job_id, task="write") == "wrote\n"
    assert [path.read_text() for path in await client.pull(job.job_id, tmp_path)] == ["42"]
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt) == []
    assert job.final_amount == receipt.receipt.amount > 0


MEET = """
import pathlib, time
pathlib.Path('{me}').touch()
for _ in range(600):
    if pathlib.Path('{other}').exists(): break
    time.sleep(0.1)
else: raise SystemExit('nobody came')
"""


async def test_tasks_of_a_group_run_at_the_same_time_and_the_next_group_after_them(client: AsyncClient) -> None:
    job = await run(
        client,
        python("a", MEET.format(me="a", other="b"), group="meet"),
        python("b", MEET.format(me="b", other="a"), group="meet"),
        python(
            "c", "import os; assert {'a', 'b'} <= set(os.listdir()); print(len(os.sched_getaffinity(0)))", group="after"
        ),
    )

    assert states(job) == dict.fromkeys("abc", "succeeded"), job.detail
    assert await client.logs(job.job_id, task="c") == "1\n", "the one core that is the job's"


async def test_a_failing_task_stops_the_others_and_its_exit_code_is_the_jobs(client: AsyncClient) -> None:
    job = await run(
        client,
        python("long", "import time; time.sleep(60)"),
        python("bad", "raise SystemExit(7)"),
        python("never", "pass", depends_on=["long"]),
    )

    assert (job.state, job.reason, job.leases[0].exit_code) == (JobState.FAILED, EndReason.FAILED_EXIT, 7)
    assert states(job) == {"long": "stopped", "bad": "failed", "never": "skipped"}
    assert job.leases[0].detail == "task bad: exit code 7"
    assert 0 < job.leases[0].billed_ms < 30_000


async def test_a_task_that_may_fail_and_a_background_task_do_not_fail_the_job(client: AsyncClient) -> None:
    job = await run(
        client,
        python("server", "import time; time.sleep(60)", background=True),
        python("lint", "raise SystemExit(1)", may_fail=True),
        python("work", "print('done')", depends_on=["lint", {"task": "server", "until": "started"}]),
    )

    assert job.state is JobState.SUCCEEDED, job.detail
    assert states(job) == {"server": "stopped", "lint": "failed", "work": "succeeded"}


COUNT_STARTS = """
import pathlib
starts = pathlib.Path('starts')
seen = int(starts.read_text()) if starts.exists() else 0
starts.write_text(str(seen + 1))
print('start', seen + 1)
raise SystemExit(0 if seen == 2 else 5)
"""


async def test_a_restart_policy_starts_it_again_until_it_succeeds(client: AsyncClient) -> None:
    job = await run(client, python("flaky", COUNT_STARTS, restart="on-failure"))

    assert job.state is JobState.SUCCEEDED, job.detail
    assert (job.leases[0].tasks[0].run, job.leases[0].tasks[0].state) == (3, TaskState.SUCCEEDED)
    assert await client.logs(job.job_id, task="flaky") == "start 1\nstart 2\nstart 3\n"


async def test_a_task_that_runs_into_its_timeout_has_failed(client: AsyncClient) -> None:
    job = await run(client, python("slow", "import time; time.sleep(60)", timeout="1s"), python("other", "pass"))

    assert (job.reason, job.leases[0].exit_code) == (EndReason.FAILED_EXIT, 124)
    assert job.leases[0].detail == "task slow: it ran into its timeout of 1 s"


async def test_max_duration_holds_for_all_tasks_together(client: AsyncClient) -> None:
    sleep = "import time; time.sleep(60)"
    job = await run(
        client,
        python("a", sleep, restart="always"),
        python("b", "pass", depends_on=["a"]),
        limits={"max_duration": "2s"},
    )

    assert (job.state, job.reason) == (JobState.FAILED, EndReason.MAX_DURATION)
    assert states(job) == {"a": "stopped", "b": "skipped"}


async def test_a_running_job_of_several_is_cancelled(client: AsyncClient) -> None:
    job = await submit(client, python("a", "import time; time.sleep(60)"), python("b", "pass", depends_on=["a"]))
    await until_task(client, job.job_id, "a", TaskState.RUNNING)
    await client.cancel(job.job_id)
    ended = await client.wait(job.job_id)

    assert (ended.state, ended.reason) == (JobState.CANCELLED, EndReason.CANCELLED)
    assert states(ended) == {"a": "stopped", "b": "skipped"}


async def test_a_command_that_is_not_there_fails_its_task_and_what_was_done_is_paid(client: AsyncClient) -> None:
    job = await run(client, python("a", "print('hi')"), {"name": "b", "command": ["/no/such"], "depends_on": ["a"]})

    assert (job.state, job.reason, job.leases[0].exit_code) == (JobState.FAILED, EndReason.FAILED_EXIT, 127)
    assert job.leases[0].amount > 0


async def test_what_a_task_printed_is_a_result_and_goes_into_a_later_task(client: AsyncClient) -> None:
    say = "print('loss=0.25'); print('file: a.bin'); print('file: b c.bin')"
    job = await run(
        client,
        python(
            "train", say, results={"loss": r"loss=(\S+)", "files": {"regex": r"(?<=^file: ).*$", "streams": ["stdout"]}}
        ),
        python(
            "use",
            "import os, sys; print(sys.argv[1:], os.environ['NOTE'])",
            args=["${{ tasks.train.results.files }}", "x${{ tasks.train.results.loss }}"],
            env={"NOTE": "${{ job.id }}: ${{ tasks.train.results.files }}"},
            depends_on=["train"],
        ),
    )

    assert job.state is JobState.SUCCEEDED, job.detail
    assert job.leases[0].tasks[0].results == {"loss": "0.25", "files": ("a.bin", "b c.bin")}
    assert await client.logs(job.job_id, task="use") == f"['a.bin', 'b c.bin', 'x0.25'] {job.job_id}: a.bin b c.bin\n"


async def test_an_expression_without_a_value_fails_its_task_and_says_so(client: AsyncClient) -> None:
    job = await run(
        client,
        python("silent", "pass", results={"x": "x=(.*)"}),
        python("use", "pass", env={"X": "${{ tasks.silent.results.x }}"}, depends_on=["silent"]),
    )

    assert (job.reason, job.leases[0].exit_code) == (EndReason.FAILED_EXIT, 127)
    assert job.leases[0].detail == "task use: tasks.silent.results.x has no value: the task did not print it"


async def test_the_cli_shows_tasks(client: AsyncClient, tmp_path: Path) -> None:
    torg = [script("torg"), "--home", str(client.config.home), "--marketplace", client.config.marketplace_url]
    file = tmp_path / "job.yaml"
    file.write_text(
        "version: 1\nresources: {memory: 128MiB, disk: 32MiB}\nlimits: {max_duration: 1m}\ntasks:\n"
        "  - {name: one, command: [python, -c, print(1)]}\n"
        "  - {name: second, command: [python, -c, 'raise SystemExit(3)'], depends_on: [one]}\n"
    )
    code, out = await call([*torg, "submit", str(file), "--wait"], check=False)
    job_id = (await client.jobs(limit=1)).jobs[0].job_id
    _, shown = await call([*torg, "show", job_id])
    _, logged = await call([*torg, "logs", job_id, "--task", "one"])
    _, top = await call([*torg, "top"])

    assert code == 3
    assert "one    | 1\n" in out
    assert [line.split()[:4] for line in shown.splitlines()[-2:]] == [
        ["one", "succeeded", "1", "0"],
        ["second", "failed", "1", "3"],
    ]
    assert logged == "1\n"
    assert top.startswith("0 running, 0 others open")
    assert job_id in top


ONCE = """
import pathlib, time
with open('log', 'a') as log: log.write('{me}\\n')
for n in range(6):
    print('{me}', n)
    time.sleep(0.5)
"""


async def test_a_killed_agent_takes_up_where_it_was_and_nothing_runs_twice(
    market: SmallMarket, client: AsyncClient
) -> None:
    """Killed while two run, and again while the third does."""
    job = await submit(
        client,
        python("a", ONCE.format(me="a")),
        python("b", ONCE.format(me="b")),
        python("c", ONCE.format(me="c") + "print(sorted(open('log').read().split()))", depends_on=["a", "b"]),
        lease_grace="60s",
    )
    for task in ("b", "c"):  # the newest of those that run: its start is written down
        await until_task(client, job.job_id, task, TaskState.RUNNING)
        assert market.node is not None
        await market.node.kill()
        await market.start_node()
    ended = await client.wait(job.job_id)

    assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1), ended.detail
    assert states(ended) == dict.fromkeys("abc", "succeeded")
    counted = "".join(f"c {n}\n" for n in range(6))
    assert await client.logs(job.job_id, task="c") == counted + "['a', 'b', 'c']\n"
    moves = [
        (event.data["task"], event.data["state"]) async for event in client.follow(job.job_id) if event.kind == "task"
    ]
    assert sorted(moves) == sorted((task, state) for task in "abc" for state in ("running", "succeeded"))


async def until_task(client: AsyncClient, job_id: str, task: str, state: TaskState) -> None:
    async with asyncio.timeout(150):
        async for event in client.follow(job_id):
            if event.kind == "task" and (event.data["task"], event.data["state"]) == (task, state):
                return
    raise AssertionError(f"the job ended before {task} was {state}")
