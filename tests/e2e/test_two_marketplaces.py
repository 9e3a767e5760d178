"""One machine, two marketplaces: the host's own ledger is the one authority, and who comes second is declined without penalty."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from scripts.market_processes import call, script
from tests.support.small_market import SmallMarket, run, submit
from torg.client import AsyncClient
from torg_protocol.api import JobView
from torg_protocol.states import EndReason, JobState, LeaseState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
EVERY_CORE = {"memory": "128MiB", "disk": "32MiB", "cpus": len(os.sched_getaffinity(0))}
LONG = ["python", "-c", "import time; time.sleep(600)"]


async def test_what_one_marketplace_has_leased_the_other_is_declined_until_it_is_free(tmp_path: Path) -> None:
    first, second = SmallMarket(tmp_path / "first"), SmallMarket(tmp_path / "second")
    try:
        for market in (first, second):
            market.folder.mkdir()
            await market.start_localnet()
            await market.start_marketplace()
            await _start_node(market, tmp_path / "reservations.sqlite")
        async with first.client() as here, second.client() as there:
            running = await submit(here, LONG, limits={"max_duration": "5m"}, resources=EVERY_CORE)
            await _until_running(here, running.job_id)
            waiting = await submit(there, ["true"])
            declined = await _declined(there, waiting.job_id)
            await here.cancel(running.job_id)
            cancelled = await here.wait(running.job_id)
            await there.cancel(waiting.job_id)  # its node is asked again after a minute; another job's at once
            ended = await run(there, ["true"])
            offers = await there.offers()
        _, reputation = await call([script("torg-node"), "reputation", "--data", str(second.folder / "node")])
    finally:
        for market in (first, second):
            await market.stop()

    assert (ended.state, cancelled.state) == (JobState.SUCCEEDED, JobState.CANCELLED)
    assert [lease.billed_ms for lease in declined.leases] == [0]
    assert (declined.state, declined.leases[0].reason) == (JobState.QUEUED, EndReason.DECLINED)
    assert offers[0].state == "active"
    assert "0 broken" in reputation


async def _start_node(market: SmallMarket, ledger: Path) -> None:
    data = market.folder / "node"
    init = ["init", "--data", str(data), "--marketplace", market.url, "--price", "1.00", "--executor", "sandbox"]
    await call([script("torg-node"), *init, "--max-unpaid", "10", "--yes", "--json"])
    config = data / "config.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("reservations_path")]
    config.write_text("\n".join([f'reservations_path = "{ledger}"', *lines]) + "\n")
    await market.start_node()


async def _until_running(client: AsyncClient, job_id: str) -> None:
    async with asyncio.timeout(150):
        while not (job := await client.job(job_id)).leases or job.leases[-1].state is not LeaseState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _declined(client: AsyncClient, job_id: str) -> JobView:
    """Once the second marketplace has tried."""
    async with asyncio.timeout(150):
        while not (job := await client.job(job_id)).leases or job.leases[0].state is not LeaseState.RELEASED:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return job
