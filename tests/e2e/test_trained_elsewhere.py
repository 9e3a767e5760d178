"""A training whose node dies goes on at another owner's, and ends in the same weights, bit for bit, as one that was never interrupted;
a segment of it is executed again by the marketplace before anybody is paid."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import yaml

from scripts.market_processes import remove_containers, start
from tests.support.small_market import SmallMarket, running_market
from tests.support.workload_runs import WORKLOADS
from torg.client import AsyncClient
from torg.spec_file import spec_from_mapping
from torg_protocol.api import JobView
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import SignedReceipt, verify_receipt

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
EPOCHS = "300"  # several seconds: it must not end before its node is killed


async def test_a_killed_training_ends_in_the_same_weights_elsewhere_and_is_verified(tmp_path: Path) -> None:
    async with running_market(tmp_path / "market") as market, market.client() as client:
        raw = yaml.safe_load((WORKLOADS / "health/job.yaml").read_text())
        raw |= {
            "command": ["python", "train.py", "--epochs", EPOCHS],
            "lease_grace": "10s",
            "name": "trained-elsewhere",
        }
        raw |= {"verify": {"policy": "replay", "catalogue": "health", "segments": 2}}
        job = await client.submit(spec_from_mapping(raw, base=WORKLOADS / "health"))
        await until_checkpoint(client, job.job_id)
        assert market.node is not None
        await market.node.kill()
        await remove_containers(market.folder / "node")  # the machine is gone, with all that ran on it

        ended, outputs, receipts = await finished_by_another(market, client, job.job_id, tmp_path)

    first, second = ended.leases
    assert (ended.state, first.state, second.state) == (JobState.SUCCEEDED, LeaseState.LOST, LeaseState.VERIFIED)
    assert first.node != second.node
    assert second.resumed_from == first.newest_checkpoint is not None
    assert all(verify_receipt(receipt) == [] for receipt in receipts)
    verdict = receipts[-1].receipt.verdict
    assert (verdict.policy, verdict.result, verdict.measured["distance"]) == ("replay", "passed", "0.000e+00")

    (model,) = [path for path in outputs if path.name == "model.safetensors"]
    assert model.read_bytes() == (await uninterrupted(tmp_path / "uninterrupted")).read_bytes()


async def test_a_liar_that_leaves_is_found_before_an_honest_node_goes_on_from_it(tmp_path: Path) -> None:
    async with running_market(tmp_path / "market") as market, market.client() as client:
        assert market.node is not None
        await market.node.stop()
        argv = [sys.executable, "-m", "tests.support.lying_node", "start", "--data", str(market.folder / "node")]
        market.node = await start("liar", argv, market.folder / "liar.log", env={"LIES_ABOUT": "checkpoints"})
        raw = yaml.safe_load((WORKLOADS / "health/job.yaml").read_text())
        raw |= {"command": ["python", "train.py", "--epochs", EPOCHS], "lease_grace": "10s", "name": "lied-about"}
        raw |= {"verify": {"policy": "replay", "catalogue": "health"}}
        job = await client.submit(spec_from_mapping(raw, base=WORKLOADS / "health"))
        await until_checkpoint(client, job.job_id)
        await market.node.kill()
        await remove_containers(market.folder / "node")

        ended, outputs, receipts = await finished_by_another(market, client, job.job_id, tmp_path)

    liar, honest = ended.leases
    why = [receipt.receipt.verdict for receipt in receipts]
    assert (ended.state, liar.state, honest.state) == (JobState.SUCCEEDED, LeaseState.REJECTED, LeaseState.VERIFIED), (
        why
    )
    assert (honest.resumed_from, liar.newest_checkpoint is None) == (None, False)
    verdicts = {receipt.receipt.node: receipt.receipt for receipt in receipts}
    assert (verdicts[liar.node].verdict.result, verdicts[liar.node].amount) == ("failed", 0)
    assert (verdicts[honest.node].verdict.result, verdicts[honest.node].amount > 0) == ("passed", True)
    (model,) = [path for path in outputs if path.name == "model.safetensors"]
    assert model.read_bytes() == (await uninterrupted(tmp_path / "uninterrupted")).read_bytes()


async def finished_by_another(
    market: SmallMarket, client: AsyncClient, job_id: str, folder: Path
) -> tuple[JobView, list[Path], tuple[SignedReceipt, ...]]:
    """A node of another owner joins, and goes on: the job's end, its outputs and its receipts."""
    other = SmallMarket(folder / "other", url=market.url, rpc_url=market.rpc_url)
    try:
        await other.start_node()
        ended = await client.wait(job_id)
        return ended, await client.pull(job_id, folder / "outputs"), await client.receipts(job_id)
    finally:
        await other.stop()


async def until_checkpoint(client: AsyncClient, job_id: str) -> None:
    async with asyncio.timeout(240):
        async for event in client.follow(job_id):
            if event.kind == "checkpoint":
                return
    raise AssertionError("it ended without a checkpoint")


async def uninterrupted(folder: Path) -> Path:
    """The same script, run here from beginning to end."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"TORG_CHECKPOINT_DIR": str(folder / "checkpoints"), "TORG_OUTPUT_DIR": str(folder / "outputs")}
    env |= {"TORG_PROGRESS_FILE": str(folder / "progress.jsonl"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "train.py",
        "--epochs",
        EPOCHS,
        cwd=WORKLOADS / "health",
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    return folder / "outputs/model.safetensors"
