"""The host's clock is set under running leases (SIMULATED in the agent's process): they last as long as they last, and are billed so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.jumping_clock import JumpingClock
from tests.support.small_market import SmallMarket, submit
from torg.client import AsyncClient
from torg_protocol.states import JobState
from torg_protocol.usage import verify_receipt

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow]
COUNT = ["python", "-u", "-c", "import time\nfor n in range(12):\n    print(n)\n    time.sleep(0.5)"]
JUMP_S = 240  # the most that signed requests allow, a minute off


@pytest.mark.parametrize("jump_s", [JUMP_S, -JUMP_S], ids=["forward", "back"])
async def test_a_lease_is_billed_for_what_it_ran_whatever_the_hosts_clock_says(tmp_path: Path, jump_s: int) -> None:
    clock = JumpingClock.build(tmp_path)
    market = SmallMarket(tmp_path, usage_interval="2s")
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node(clock.environment)
        async with market.client() as client:
            job = await submit(client, COUNT, lease_grace="60s", limits={"max_duration": "30s"})
            await _says(client, job.job_id, "3\n")
            clock.move(jump_s)
            await _says(client, job.job_id, "7\n")
            assert market.node is not None
            await market.node.kill()  # the next agent finds a clock that was set while nobody looked
            await market.start_node(clock.environment)
            ended = await client.wait(job.job_id)
            (lease,) = ended.leases
            (receipt,) = await client.receipts(job.job_id)
    finally:
        await market.stop()

    assert ended.state is JobState.SUCCEEDED
    assert 5_500 < lease.billed_ms < 30_000
    assert verify_receipt(receipt) == []


async def _says(client: AsyncClient, job_id: str, text: str) -> None:
    async with asyncio.timeout(150):
        while text not in await client.logs(job_id):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
