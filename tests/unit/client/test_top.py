"""`torg top`: what its screen says of jobs in every state, and how the curve of a job grows from look to look."""

from __future__ import annotations

from typing import Any

from tests.support.answers import job_view
from torg.cli.present import Coin
from torg.cli.top import History, screen
from torg_protocol.api import JobView, LeaseView, TaskView
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.tasks import TaskState

MONEY = Coin(6, "tUSD")
NOW_MS = 10_000_000


def job(job_id: str, state: JobState, lease: LeaseView | None = None, **fields: Any) -> JobView:
    leases = (lease,) if lease is not None else ()
    given = {"name": job_id, "max_amount": 1_000_000, "created_at_ms": NOW_MS - 120_000, "leases": leases, **fields}
    return job_view(job_id, state, **given)


def lease(**fields: Any) -> LeaseView:
    return LeaseView(
        lease_id=LeaseId("l"),
        attempt=1,
        node=NodeId("node-one-and-more"),
        state=LeaseState.RUNNING,
        price_per_gpu_hour=3_600_000,
        granted_at_ms=NOW_MS - 100_000,
        started_at_ms=NOW_MS - 90_000,
        **fields,
    )


def test_a_step_of_the_preparation_is_shown_until_the_job_runs() -> None:
    at_image = {"step": "image host-python"}
    prepares = job("a", JobState.LEASED, lease().model_copy(update={"started_at_ms": None}), progress=at_image)
    runs = job("b", JobState.LEASED, lease(), progress=at_image)
    counts = job("c", JobState.LEASED, lease(), progress={"step": 7})
    lines = screen([prepares, runs, counts], History(), MONEY, NOW_MS, 40).splitlines()[2:]

    assert [line.split()[-1] for line in lines] == ["host-python", "tUSD", "7"]


def test_each_state_says_what_one_wants_to_know() -> None:
    tasks = (TaskView(task="a", state=TaskState.SUCCEEDED), TaskView(task="b", state=TaskState.RUNNING))
    jobs = [
        job("done", JobState.SUCCEEDED, final_amount=5, ended_at_ms=NOW_MS - 60_000, reason=EndReason.COMPLETED),
        job("queued", JobState.QUEUED, waiting_for="a node with 8 GPUs"),
        job("running", JobState.LEASED, lease(tasks=tasks), progress={"step": 3, "total_steps": 9, "loss": 0.25}),
    ]
    head, _, *lines = screen(jobs, History(), MONEY, NOW_MS, 40).splitlines()

    assert head == "1 running, 1 others open, at most 2 tUSD held"
    assert [line.split()[0] for line in lines] == ["queued", "running", "done"]
    assert "waits 2 min" in lines[0]
    assert lines[0].endswith("a node with 8 GPUs")
    assert " node-one " in lines[1]
    assert "1 min 30 s " in lines[1]
    assert " 0.09 tUSD " in lines[1]
    assert lines[1].endswith("task b  3/9  loss 0.25  ▁")
    assert "ended 1 min ago" in lines[2]


def test_ended_jobs_fill_what_is_left_of_the_screen() -> None:
    jobs = [job(f"old{number}", JobState.FAILED, ended_at_ms=NOW_MS) for number in range(50)]

    assert len(screen(jobs, History(), MONEY, NOW_MS, 10).splitlines()) == 8
    assert screen([], History(), MONEY, NOW_MS, 10).endswith("no jobs yet")


def test_the_curve_grows_from_look_to_look() -> None:
    history = History()
    for loss in (1.0, 0.5, 0.0):
        text = screen([job("a", JobState.LEASED, lease(), progress={"loss": loss})], history, MONEY, NOW_MS, 10)

    assert text.endswith("loss 0  █▅▁")
