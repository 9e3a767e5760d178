"""Gangs with real processes: agents on one host, each with sandboxes of its own network, reach each other through the gateway alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from scripts.market_processes import Running, call, remove_containers, script, start
from tests.support.small_market import SmallMarket, running_market, submit
from torg.client import AsyncClient
from torg_protocol.api import JobView
from torg_protocol.states import EndReason, JobState, LeaseState

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a gang's network needs root"),
]
ALL_REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
numbers = torch.arange(200_000, dtype=torch.float64) * (rank + 1)
dist.all_reduce(numbers)
expected = torch.arange(200_000, dtype=torch.float64) * sum(range(1, size + 1))
assert torch.equal(numbers, expected)
print(f"rank {rank} of {size} has {int(numbers[-1])}", flush=True)
dist.barrier()
if rank == 0:
    open(os.environ["TORG_OUTPUT_DIR"] + "/sum", "w").write(str(int(numbers[-1])))
"""

HANGS_AT_FIRST = "import os, time; time.sleep(600 if os.environ['TORG_ATTEMPT'] == '1' else 1)"


@asynccontextmanager
async def nodes(market: SmallMarket, count: int) -> AsyncIterator[list[Running]]:
    """More nodes, beside the market's own."""
    folders = [market.folder / f"node-{number}" for number in range(count)]
    running: list[Running] = []
    try:
        for folder in folders:
            options = ["--marketplace", market.url, "--price", "1.00", "--executor", "sandbox", "--max-unpaid", "10"]
            await call([script("torg-node"), "init", "--data", str(folder), *options, "--yes", "--json"])
        starting = [
            start("node", [script("torg-node"), "start", "--data", str(folder)], folder.with_suffix(".log"))
            for folder in folders
        ]
        running += await asyncio.gather(*starting)
        yield running
    finally:
        for process in running:
            await process.stop()
        for folder in folders:
            await remove_containers(folder)


async def until_running(client: AsyncClient, job: JobView) -> JobView:
    async with asyncio.timeout(150):
        while True:
            view = await client.job(job.job_id)
            live = [lease for lease in view.leases if lease.state is LeaseState.RUNNING]
            if len(live) == job.spec.nodes_at_once:
                return view
            await asyncio.sleep(0.1)


async def test_gloo_adds_up_across_nodes_without_a_route_and_a_lost_node_is_replaced(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market, nodes(market, 2) as others, market.client() as client:
        torg = [script("torg"), "--home", str(client.config.home), "--marketplace", market.url, "--json", "run"]
        options = ["--gang", "3", "--no-workspace", "--keep", "sum", "--memory", "700MiB", "--disk", "32MiB"]
        _, said = await call([*torg, *options, "--max-duration", "5m", "--detach", "--", "python", "-c", ALL_REDUCE])
        job = JobView.model_validate_json(said)
        ended = await client.wait(job.job_id)
        said = await client.logs(job.job_id)
        assert ended.state is JobState.SUCCEEDED, said + await client.logs(job.job_id, "stderr")
        for rank in range(3):
            assert f"rank {rank} | rank {rank} of 3 has {199_999 * 6}\n" in said
        assert len({lease.node for lease in ended.leases}) == 3
        assert all(lease.billed_ms > 0 for lease in ended.leases)
        assert [output.path for output in ended.outputs] == ["sum"]
        assert ended.final_amount == sum(lease.amount for lease in ended.leases)

        pair = await submit(client, ["python", "-c", HANGS_AT_FIRST], gang={"size": 2}, lease_grace="15s")
        first = await until_running(client, pair)
        lost = next(
            (process, lease) for lease in first.leases for process in others if process.ready.get("node") == lease.node
        )
        await lost[0].kill()
        ended = await client.wait(pair.job_id)
        assert ended.state is JobState.SUCCEEDED
        assert sorted(str(lease.reason) for lease in ended.leases) == [
            *("completed", "completed"),
            *(EndReason.GANG_ENDED, EndReason.NODE_LOST),
        ]
        assert lost[1].node not in {lease.node for lease in ended.leases if lease.attempt == 2}
