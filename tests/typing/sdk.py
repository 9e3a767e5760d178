"""The SDK as its users type it: this file is not run, it is type-checked (mypy strict) like a user's program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_type

import torg
from torg import JobEvent, JobSpec, JobState, JobView, LeaseView, MarketInfo, NodeView, Quote, SignedReceipt


def squared(number: int) -> int:
    return number * number


async def asynchronous() -> None:
    async with torg.AsyncClient() as client:
        spec = torg.read_spec_file(Path("job.yaml"))
        assert_type(await client.quote(spec.check()), Quote)
        job = await client.submit(spec)
        assert_type(job, JobView)
        async for event in client.follow(job.job_id):
            assert_type(event, JobEvent)
            assert_type(event.id, int)
        async for one in client.all_jobs(state=JobState.FAILED):
            assert_type(one, JobView)
            assert_type(one.leases, tuple[LeaseView, ...])
        assert_type(spec.check(), JobSpec)
        assert_type(await client.market(), MarketInfo)
        assert_type(await client.offers(), tuple[NodeView, ...])
        assert_type(await client.receipts(job.job_id), tuple[SignedReceipt, ...])
        assert_type(await client.run(squared, 3, spec={"limits": {"max_duration": "1m"}}), int)
        async for value in client.map(squared, [1, 2]):
            assert_type(value, int)


def blocking() -> None:
    with torg.Client() as client:
        job = client.submit(torg.read_spec_file(Path("job.yaml")))
        assert_type(client.wait(job.job_id, check=True), JobView)
        assert_type([one.state for one in client.all_jobs()], list[JobState])
        assert_type(client.pull(job.job_id, Path("results")), list[Path])
        assert_type(client.run(squared, 3), int)
        assert_type(list(client.map(squared, [1, 2], at_once=2)), list[int])
        for event in client.follow(job.job_id):
            assert_type(
                event.kind,
                Literal[
                    "job",
                    "lease",
                    "task",
                    "preparing",
                    "progress",
                    "ports",
                    "checkpoint",
                    "volume",
                    "log",
                    "receipt",
                    "removed",
                ],
            )
