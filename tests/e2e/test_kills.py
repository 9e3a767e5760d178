"""Processes that are killed without warning: what was leased goes on, what was earned is paid once, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from solders.pubkey import Pubkey

from tests.support.postgres import Postgres, postgres
from tests.support.small_market import TUSD, SmallMarket, run, running_market, submit
from torg.client import AsyncClient
from torg_chain.rpc import ChainClient
from torg_protocol.api import JobView, SettlementView
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import verify_receipt

__all__ = ["postgres"]

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

# Counts to eight, two counts a second, and says every number once.
COUNT = ["python", "-u", "-c", "import time\nfor n in range(8):\n    print(n)\n    time.sleep(0.5)"]
COUNTED = "".join(f"{n}\n" for n in range(8))


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SmallMarket]:
    async with running_market(tmp_path) as market:
        yield market


async def test_the_marketplace_is_killed_mid_job_and_the_node_finishes_without_it(market: SmallMarket) -> None:
    async with market.client() as client:
        job = await submit(client, COUNT, lease_grace="60s")
        await _until_running(client, job.job_id)
        away_from_s = time.monotonic()
        await _kill_and_restart_marketplace(market, down_s=6)  # the job ends meanwhile
        away_ms = (time.monotonic() - away_from_s) * 1000
        ended = await client.wait(job.job_id)

        assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
        assert 3_500 < ended.leases[0].billed_ms < away_ms, "what it ran for, not until it could be heard again"
        await _assert_paid_once(market, client, ended)


async def test_the_same_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    async with running_market(tmp_path, postgres.new_database()) as market, market.client() as client:
        job = await submit(client, COUNT, lease_grace="60s")
        await _until_running(client, job.job_id)
        await _kill_and_restart_marketplace(market, down_s=6)
        ended = await client.wait(job.job_id)

        assert not (tmp_path / "marketplace/marketplace.sqlite").exists()
        assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
        await _assert_paid_once(market, client, ended)


async def test_the_marketplace_is_killed_while_the_job_goes_on_and_the_log_is_whole(market: SmallMarket) -> None:
    async with market.client() as client:
        job = await submit(client, COUNT, lease_grace="60s")
        await _until_running(client, job.job_id)
        await _kill_and_restart_marketplace(market, down_s=0)
        ended = await client.wait(job.job_id)

        assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
        await _assert_paid_once(market, client, ended)


async def test_the_agent_is_killed_mid_job_and_its_successor_takes_the_container_over(market: SmallMarket) -> None:
    async with market.client() as client:
        job = await submit(client, COUNT, lease_grace="60s")
        await _until_running(client, job.job_id)
        assert market.node is not None
        await market.node.kill()
        await market.start_node()
        ended = await client.wait(job.job_id)

        assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
        assert await client.logs(job.job_id) == COUNTED  # one container, which ran once
        await _assert_paid_once(market, client, ended)


async def test_the_chain_is_away_during_settlement_and_is_settled_later_once(market: SmallMarket) -> None:
    async with market.client() as client:
        assert market.localnet is not None
        job = await submit(client, COUNT)
        await _until_running(client, job.job_id)
        await market.localnet.kill()
        ended = await client.wait(job.job_id)
        assert ended.state is JobState.SUCCEEDED
        await asyncio.sleep(3)  # the settlement worker tries, and cannot
        await market.start_localnet()

        await _assert_paid_once(market, client, ended)
        # And the market works on.
        assert (await run(client, ["true"])).state is JobState.SUCCEEDED


async def _kill_and_restart_marketplace(market: SmallMarket, *, down_s: float) -> None:
    assert market.marketplace is not None
    await market.marketplace.kill()
    await asyncio.sleep(down_s)
    await market.start_marketplace()


async def _until_running(client: AsyncClient, job_id: str) -> None:
    async with asyncio.timeout(150):
        async for event in client.follow(job_id):
            if event.kind == "lease" and event.data["state"] == LeaseState.RUNNING:
                return
    raise AssertionError(f"{job_id} ended before it ran")


async def _assert_paid_once(market: SmallMarket, client: AsyncClient, job: JobView) -> None:
    """The receipts hold, and the chain has paid exactly what they say: to the node, to the operator, out of the vault."""
    receipts = await client.receipts(job.job_id)
    assert all(verify_receipt(receipt) == [] for receipt in receipts)
    amount = sum(receipt.receipt.amount for receipt in receipts)
    assert amount == job.final_amount > 0
    vault = client.journal.vault((await client.market()).marketplace).address
    settlements = await _finalized(client, vault, amount)
    assert sum(item.amount for item in settlements) == amount
    async with ChainClient(market.rpc_url) as chain:
        state = await chain.existing_vault(vault)
        mint = Pubkey.from_string((await client.market()).chain.mint)
        node = await chain.token_balance(Pubkey.from_string(receipts[0].receipt.payout_address), mint)
    assert (state.settled, state.balance) == (amount, 5 * TUSD - amount)
    assert node == amount - amount * 200 // 10_000


async def _finalized(client: AsyncClient, vault: str, amount: int) -> tuple[SettlementView, ...]:
    async with asyncio.timeout(150):
        while True:
            found = tuple(item for item in await client.vaults.settlements(vault) if item.state == "finalized")
            if sum(item.amount for item in found) >= amount:
                return found
            await asyncio.sleep(0.3)
