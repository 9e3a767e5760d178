"""Real processes, the real vault program: a node with collateral that lies in a verified job loses it to the client, a day later."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from solders.keypair import Keypair

from scripts.market_processes import call, script, start
from tests.support.small_market import TUSD, SmallMarket
from tests.support.waiting import eventually
from tests.support.workload_runs import WORKLOADS
from torg.client import AsyncClient
from torg.spec_file import spec_from_mapping
from torg_chain.rpc import ChainClient
from torg_chain.vault import DISPUTE_DELAY_S
from torg_chain.wallet import save_keypair
from torg_protocol.states import JobState, LeaseState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]
STAKE = 10 * TUSD


async def slashes(market: SmallMarket) -> list[dict[str, object]]:
    data = ["--data", str(market.folder / "marketplace"), "--rpc-url", market.rpc_url]
    _, out = await call([script("torg-marketplace"), "slashes", *data])
    return list(json.loads(out)["slashes"])


async def collateral_with(market: SmallMarket, owner: Keypair) -> str:
    save_keypair(owner, market.folder / "owner.json")
    async with ChainClient(market.rpc_url) as chain:
        await chain.faucet(owner.pubkey(), 20 * TUSD)
    where = ["--data", str(market.folder / "node"), "--json", "--wallet", str(market.folder / "owner.json")]
    _, out = await call([script("torg-node"), "stake", "10", *where])
    answer = json.loads(out)
    assert answer["balance"] == STAKE
    return str(answer["collateral"])


async def start_liar(market: SmallMarket) -> None:
    argv = [sys.executable, "-m", "tests.support.lying_node", "start", "--data", str(market.folder / "node")]
    market.node = await start("liar", argv, market.folder / "liar.log")


async def verified_training(client: AsyncClient) -> str:
    raw = yaml.safe_load((WORKLOADS / "health/job.yaml").read_text())
    raw |= {"command": ["python", "train.py", "--epochs", "3"], "name": "verified"}
    raw |= {"verify": {"policy": "replay", "catalogue": "health", "segments": 8}, "retry": {"max_attempts": 1}}
    raw["limits"] = {"max_duration": "2m"}
    return (await client.submit(spec_from_mapping(raw, base=WORKLOADS / "health"))).job_id


async def test_a_node_that_lies_loses_its_collateral_to_the_client(tmp_path: Path) -> None:
    market = SmallMarket(tmp_path)
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node()
        assert market.node is not None
        await market.node.stop()
        collateral = await collateral_with(market, Keypair())
        await start_liar(market)
        async with market.client() as client, ChainClient(market.rpc_url) as chain:
            ended = await client.wait(await verified_training(client))
            (lease,) = ended.leases
            (receipt,) = await client.receipts(ended.job_id)
            assert (ended.state, lease.state, ended.final_amount) == (JobState.FAILED, LeaseState.REJECTED, 0)

            async def proposed() -> bool:
                return [row["state"] for row in await slashes(market)] == ["proposed"]

            await eventually(proposed, within_s=240)
            (slash,) = await slashes(market)
            amount = int(str(slash["amount"]))
            assert 0 < amount < STAKE
            state = await chain.existing_vault(collateral)
            assert state.slash is not None
            assert (state.slash.amount, str(state.slash.beneficiary)) == (amount, receipt.receipt.client)
            before = await chain.token_balance(state.slash.beneficiary, state.mint)

            await chain.localnet("torg_advance_clock", [DISPUTE_DELAY_S])

            async def executed() -> bool:
                return [row["state"] for row in await slashes(market)] == ["executed"]

            await eventually(executed, within_s=400)
            assert (await chain.existing_vault(collateral)).balance == STAKE - amount
            assert await chain.token_balance(state.slash.beneficiary, state.mint) == before + amount
    finally:
        await market.stop()
