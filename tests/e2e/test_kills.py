"""Processes that are killed without warning: what was leased goes on, what was earned is paid once, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from solders.pubkey import Pubkey

from tests.support.postgres import Postgres, postgres
from tests.support.small_market import TUSD, SmallMarket, let_go, run, running_market, submit, until_ended
from torg.client import AsyncClient
from torg_chain.rpc import ChainClient
from torg_protocol.api import JobView, SettlementView
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import verify_receipt

__all__ = ["postgres"]

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

# Counts to eight, two counts a second, and says every number once.
COUNT = ["python", "-u", "-c", "import os, time\nfor n in range(8):\n    print(n)\n    time.sleep(0.5)"]
COUNTED = "".join(f"{n}\n" for n in range(8))
# The same, and it does not come to its end before the marketplace is away.
WAITS_AT_THREE = ["python", "-u", "-c", f"{COUNT[-1]}\n    while n == 3 and not os.path.exists('go'): time.sleep(0.05)"]


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SmallMarket]:
    async with running_market(tmp_path) as market:
        yield market


async def test_the_marketplace_is_killed_mid_job_and_the_node_finishes_without_it(market: SmallMarket) -> None:
    async with market.client() as client:
        job = await submit(client, WAITS_AT_THREE, lease_grace="60s")
        await _until_running(client, job.job_id)
        over_at_ms = await _away_until_the_job_is_over(market)
        ended = await client.wait(job.job_id)

        (lease,) = ended.leases
        assert ended.state is JobState.SUCCEEDED
        assert 3_500 < lease.billed_ms <= over_at_ms - lease.granted_at_ms, "not until it could be heard again"
        await _assert_paid_once(market, client, ended)


async def test_the_same_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    async with running_market(tmp_path, postgres.new_database()) as market, market.client() as client:
        job = await submit(client, WAITS_AT_THREE, lease_grace="60s")
        await _until_running(client, job.job_id)
        await _away_until_the_job_is_over(market)
        ended = await client.wait(job.job_id)

        assert not (tmp_path / "marketplace/marketplace.sqlite").exists()
        assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
        await _assert_paid_once(market, client, ended)


async def test_the_marketplace_is_killed_while_the_job_goes_on_and_the_log_is_whole(market: SmallMarket) -> None:
    async with market.client() as client:
        job = await submit(client, COUNT, lease_grace="60s")
        await _until_running(client, job.job_id)
        assert market.marketplace is not None
        await market.marketplace.kill()
        await market.start_marketplace()
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


async def _away_until_the_job_is_over(market: SmallMarket) -> int:
    """And for a moment longer. By when it was over."""
    assert market.marketplace is not None
    await market.marketplace.kill()
    let_go(market.folder / "node")
    await until_ended(market.folder / "node")
    over_at_ms = time.time_ns() // 1_000_000
    await asyncio.sleep(1)
    await market.start_marketplace()
    return over_at_ms


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
