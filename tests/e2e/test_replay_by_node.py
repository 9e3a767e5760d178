"""Real processes: a segment of a training is executed again on the node of another owner, which the operator pays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scripts.market_processes import call, script
from tests.support.small_market import SmallMarket, running_market
from tests.support.workload_runs import WORKLOADS
from torg.spec_file import spec_from_mapping
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


async def test_another_owners_node_executes_the_segment_bit_for_bit(tmp_path: Path) -> None:
    settings = {"TORG_MARKETPLACE_REPLAY_HERE_BELOW": "0s", "TORG_MARKETPLACE_PLANTED_PERMILLE": "0"}
    settings |= {"TORG_MARKETPLACE_UNPLANTED_HERE_BELOW": "0s", "TORG_MARKETPLACE_UNPLANTED_OWNERS": "1"}
    market = SmallMarket(tmp_path / "market", marketplace_env=settings)
    async with running_market(tmp_path / "market", market=market), market.client() as client:
        data = ["--data", str(market.folder / "marketplace"), "--rpc-url", market.rpc_url]
        await call([script("torg-marketplace"), "credit-open", "--deposit", "10", *data])
        other = SmallMarket(tmp_path / "other", url=market.url, rpc_url=market.rpc_url)
        try:
            await other.start_node()
            raw = yaml.safe_load((WORKLOADS / "health/job.yaml").read_text())
            raw |= {"command": ["python", "train.py", "--epochs", "8"], "name": "looked-at"}
            raw |= {"verify": {"policy": "replay", "catalogue": "health"}}
            job = await client.submit(spec_from_mapping(raw, base=WORKLOADS / "health"))
            ended = await client.wait(job.job_id)
            (receipt,) = await client.receipts(job.job_id)
            _, out = await call([script("torg-marketplace"), "evidence", "--about", job.job_id, *data])
            (kept,) = json.loads(out)
            status, out = await call([script("torg-marketplace"), "evidence-replay", kept["id"], *data])
            again = json.loads(out)
        finally:
            await other.stop()
    assert ended.state == JobState.SUCCEEDED, ended.detail
    measured = receipt.receipt.verdict.measured
    assert (receipt.receipt.verdict.result, measured["replays_by_nodes"], measured["replays"]) == ("passed", "1", "1")
    assert measured["distance"] == "0.000e+00"
    assert (kept["result"], status, again["same"], len(again["now"])) == ("passed", 0, True, 1)
