"""What a queue alone costs on the same PostgreSQL: two of PyPI's, one job after the other put in, taken out and marked as done, each by its own
public operations, nothing executed and nothing paid."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import asyncpg
import procrastinate
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import EntrypointExecutionParameter, Queries
from procrastinate.jobs import Status

from tests.support.postgres import Postgres

JOBS, ROUNDS = 300, 3


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    per_second: float


async def measure_peers(server: Postgres) -> list[Peer]:
    return [
        Peer("pgqueuer", await _pgqueuer(server.new_database())),
        Peer("procrastinate", await _procrastinate(server.new_database())),
    ]


async def _rate(one: Callable[[], Awaitable[Any]]) -> float:
    rates = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        for _ in range(JOBS):
            await one()
        rates.append(JOBS / (time.perf_counter() - began))
    return median(rates[1:])  # the first round warms up


async def _pgqueuer(url: str) -> float:
    connection = await asyncpg.connect(_plain(url))
    try:
        queue, manager = Queries(AsyncpgDriver(connection)), uuid.uuid4()
        await queue.install()
        wanted = {"job": EntrypointExecutionParameter(concurrency_limit=0)}

        async def one() -> None:
            await queue.enqueue("job", b"payload")
            (job,) = await queue.dequeue(1, wanted, manager, None, timedelta(seconds=30))
            await queue.log_jobs([(job, "successful", None)])

        return await _rate(one)
    finally:
        await connection.close()


async def _procrastinate(url: str) -> float:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=_plain(url)))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = await app.job_manager.register_worker()
        job_of = app.configure_task("job")

        async def one() -> None:
            await job_of.defer_async(payload="payload")
            job = await app.job_manager.fetch_job(None, worker)
            if job is None:
                raise RuntimeError("procrastinate lost a job")
            await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)

        return await _rate(one)


def _plain(url: str) -> str:
    return url.replace("postgresql+asyncpg://", "postgresql://")
