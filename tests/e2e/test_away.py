"""The marketplace is away for an hour: SIMULATED by the clocks of node and marketplace, which move while it is down. What was leased ends meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from tests.support.jumping_clock import JumpingClock
from tests.support.small_market import SmallMarket, let_go, run, submit, submit_raw, until_ended
from torg.client import AsyncClient
from torg_protocol.states import EndReason, JobState
from torg_protocol.usage import verify_receipt

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow]
# It does not come to its end before the marketplace is away.
COUNT_CODE = """
import os, time
for n in range(12):
    print(n)
    time.sleep(0.5)
    while n == 3 and not os.path.exists("go"): time.sleep(0.05)
"""
COUNT = ["python", "-u", "-c", COUNT_CODE]
COUNTED = "".join(f"{n}\n" for n in range(12))
AWAY_S = 3600


async def test_an_hour_without_a_marketplace_costs_no_work_and_bills_no_minute_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = JumpingClock.build(tmp_path)
    market = SmallMarket(tmp_path, marketplace_env=clock.environment)
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node(clock.environment)
        async with market.client() as client:
            job = await submit(client, COUNT, lease_grace="60s")
            await _says(client, job.job_id, "3\n")
            assert market.marketplace is not None
            await market.marketplace.kill()
            let_go(tmp_path / "node")
            await until_ended(tmp_path / "node")
            clock.move(AWAY_S)
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + AWAY_S)  # the client's
            await market.start_marketplace()
            ended = await client.wait(job.job_id)
            (lease,) = ended.leases
            (receipt,) = await client.receipts(job.job_id)
            said = await client.logs(job.job_id)
            further = await run(client, ["true"])
    finally:
        await market.stop()

    assert (ended.state, lease.reason) == (JobState.SUCCEEDED, EndReason.COMPLETED)
    assert said == COUNTED
    assert 5_500 < lease.billed_ms < 60_000
    assert verify_receipt(receipt) == []
    assert further.state is JobState.SUCCEEDED


async def test_what_tasks_said_while_the_marketplace_was_away_is_in_the_live_log(tmp_path: Path) -> None:
    """One task ends, another begins and ends meanwhile."""
    market = SmallMarket(tmp_path)
    tasks = [
        {"name": "first", "command": COUNT},
        {"name": "second", "command": ["echo", "of the second"], "depends_on": ["first"]},
    ]
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node()
        async with market.client() as client:
            job = await submit_raw(client, {"tasks": tasks, "resources": {"memory": "256MiB"}, "lease_grace": "60s"})
            await _says(client, job.job_id, "3\n")
            assert market.marketplace is not None
            await market.marketplace.kill()
            let_go(tmp_path / "node")
            await _until_task_ended(tmp_path / "node", "second")
            await market.start_marketplace()
            ended = await client.wait(job.job_id)
            said = [await client.logs(job.job_id, task=str(task["name"])) for task in tasks]
    finally:
        await market.stop()

    assert ended.state is JobState.SUCCEEDED
    assert said == [COUNTED, "of the second\n"]


async def _until_task_ended(node: Path, task: str) -> None:
    """By the node's own journal."""
    query = "SELECT 1 FROM task_runs WHERE task = ? AND exit_json IS NOT NULL"
    async with asyncio.timeout(150):
        with contextlib.closing(sqlite3.connect(f"file:{node}/journal.sqlite?mode=ro", uri=True)) as journal:
            while journal.execute(query, (task,)).fetchone() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def _says(client: AsyncClient, job_id: str, text: str) -> None:
    async with asyncio.timeout(150):
        while text not in await client.logs(job_id):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
