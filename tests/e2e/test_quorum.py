"""Real processes: three owners run one job, one of them lies, the client gets what the two others made and pays them alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.market_processes import call, script, start
from tests.support.small_market import SmallMarket, running_market, submit
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_protocol.states import JobState, LeaseState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
SUM = ["python", "-c", "import os; open(os.environ['TORG_OUTPUT_DIR'] + '/sum.txt', 'w').write(str(sum(range(10**6))))"]


async def two_were_made(client: AsyncClient, job_id: str) -> bool:
    return [lease.state for lease in (await client.job(job_id)).leases].count(LeaseState.REPORTED) == 2


async def test_a_lying_node_is_outvoted(tmp_path: Path) -> None:
    async with running_market(tmp_path / "market") as market, market.client() as client:
        others = [SmallMarket(tmp_path / name, url=market.url, rpc_url=market.rpc_url) for name in ("second", "liar")]
        second, liar = others
        try:
            init = ["--marketplace", market.url, "--price", "0.50", "--executor", "sandbox", "--yes", "--json"]
            await call([script("torg-node"), "init", "--data", str(liar.folder / "node"), *init, "--max-unpaid", "10"])
            argv = [sys.executable, "-m", "tests.support.lying_node", "start", "--data", str(liar.folder / "node")]
            liar.node = await start("liar", argv, tmp_path / "liar.log")
            job = await submit(client, SUM, outputs=["sum.txt"], verify={"policy": "quorum", "replicas": 3})
            await eventually(lambda: two_were_made(client, job.job_id), within_s=300)
            # Not before: drawn first and second, the honest two would decide it without the liar.
            await second.start_node()
            ended = await client.wait(job.job_id)
            pulled = await client.pull(job.job_id, tmp_path / "outputs")
        finally:
            for other in others:
                await other.stop()

    assert ended.state is JobState.SUCCEEDED
    states = {lease.node: lease.state for lease in ended.leases}
    assert len(states) == len(ended.leases) == 3
    assert liar.node is not None
    assert states[str(liar.node.ready["node"])] is LeaseState.REJECTED
    assert sorted(states.values()) == [LeaseState.REJECTED, LeaseState.VERIFIED, LeaseState.VERIFIED]
    (path,) = [path for path in pulled if path.name == "sum.txt"]
    assert path.read_text() == "499999500000"
