"""An owner's day with real processes: a drain and its end, what was earned, what was declined and why."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from scripts.market_processes import ProcessFailed, call, script
from tests.support.small_market import SmallMarket, run, running_market, submit
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_chain.network import LOCALNET_MINT
from torg_chain.rpc import ChainClient
from torg_chain.wallet import load_keypair
from torg_protocol.states import JobState, LeaseState, NodeState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
FOREVER = ["python", "-c", "import time; time.sleep(600)"]


async def torg_node(market: SmallMarket, *arguments: str) -> str:
    return (await call([script("torg-node"), *arguments, "--data", str(market.folder / "node")]))[1]


async def test_an_owner_drains_resumes_counts_and_says_what_is_not_wanted(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market, market.client() as client:
        earned = await run(client, ["python", "-c", "import time; time.sleep(1)"])
        assert earned.state is JobState.SUCCEEDED
        await _drain_and_resume(market, client)
        await _what_was_earned(market)
        await _rules(market, client)
        await _back_up(market, tmp_path)
        await _sweep(market)
        await _a_second_node_is_suggested_a_price(market, tmp_path)


async def _drain_and_resume(market: SmallMarket, client: AsyncClient) -> None:
    job = await submit(client, FOREVER, limits={"max_duration": "5m"})
    await _until(client, job.job_id, LeaseState.RUNNING)
    assert json.loads(await torg_node(market, "drain", "--wait", "--json")) == {"leases": 0}
    drained = await client.job(job.job_id)
    assert (drained.state, drained.leases[0].reason) == (JobState.QUEUED, "drained")
    await torg_node(market, "resume")
    await _until_active(client)
    async with asyncio.timeout(
        60
    ):  # the same node is not asked again for this job: another one shows that it works again
        assert (await run(client, ["true"])).state is JobState.SUCCEEDED
    await client.cancel(job.job_id)


async def _what_was_earned(market: SmallMarket) -> None:
    async def adds_up() -> bool:  # a receipt may come between the two questions
        status = json.loads(await torg_node(market, "status", "--json"))
        gross = sum(round(float(row["gross"]) * 1e6) for row in await _table(market) if row["state"] == "earned")
        return bool(gross == status["earned_decided"] > 0)

    await eventually(adds_up)
    table = await _table(market)
    months = json.loads(await torg_node(market, "earnings", "--export", "json", "--by-month"))
    assert {month["month"] for month in months} == {row["at"][:7] for row in table}
    top = await torg_node(market, "top", "--once")
    assert "running (process" in top
    assert top.count("yes") >= 3


async def _table(market: SmallMarket) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(await torg_node(market, "earnings", "--export", "csv"))))


async def _rules(market: SmallMarket, client: AsyncClient) -> None:
    config = market.folder / "node" / "config.toml"
    config.write_text(config.read_text().replace("deny = []", 'deny = ["service"]'))
    assert market.node is not None
    await market.node.stop()
    await market.start_node()
    await _until_active(client)
    job = await submit(client, ["true"], ports=[{"port": 80}], limits={"max_duration": "1m"})
    async with asyncio.timeout(150):
        while "kind_denied: its owner takes no jobs of kind service" not in await torg_node(market, "top", "--once"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await client.cancel(job.job_id)


async def _back_up(market: SmallMarket, folder: Path) -> None:
    (folder / "password").write_text("correct horse\n")
    password = ("--password-file", str(folder / "password"))
    await torg_node(market, "backup", str(folder / "backup"), *password)
    restored = str(folder / "restored")
    await call([script("torg-node"), "restore", str(folder / "backup"), *password, "--data", restored])
    assert (folder / "restored/node.json").read_text().split() == (folder / "node/node.json").read_text().split()


async def _sweep(market: SmallMarket) -> None:
    cold, node = Keypair().pubkey(), load_keypair(market.folder / "node/node.json").pubkey()
    mint = Pubkey.from_string(LOCALNET_MINT)
    async with ChainClient(market.rpc_url) as chain:

        async def holds(wallet: Pubkey) -> bool:
            return await chain.token_balance(wallet, mint) > 0

        await eventually(lambda: holds(node))
        earned = await chain.token_balance(node, mint)
        sweep = ("sweep", "--now", "--to", str(cold), "--confirm", str(cold), "--json")
        with pytest.raises(ProcessFailed, match="fees_missing"):
            await torg_node(market, *sweep)
        await chain.localnet("requestAirdrop", [str(node), 10**9])
        assert json.loads(await torg_node(market, *sweep, "--keep", "0.000001"))["amount"] >= earned - 1
        assert await chain.token_balance(cold, mint) >= earned - 1
        await _sweep_by_itself(market, holds)


async def _sweep_by_itself(market: SmallMarket, holds: Callable[[Pubkey], Awaitable[bool]]) -> None:
    """By a plan that somebody wrote into config.toml, once its owner has confirmed it."""
    cold, config = Keypair().pubkey(), market.folder / "node" / "config.toml"
    config.write_text(f'{config.read_text()}\n[sweep]\nto = "{cold}"\nat_least = 1\n')
    assert market.node is not None
    await market.node.stop()
    assert json.loads(await torg_node(market, "sweep", "--json"))["is_confirmed"] is False
    assert json.loads(await torg_node(market, "sweep", "--confirm", str(cold), "--json")) == {"confirmed": str(cold)}
    await market.start_node()
    await eventually(lambda: holds(cold))
    assert f"to {cold}, as soon as 0.000001 is there" in await torg_node(market, "earnings")


async def _a_second_node_is_suggested_a_price(market: SmallMarket, folder: Path) -> None:
    init = [script("torg-node"), "init", "--marketplace", market.url, "--yes", "--executor", "sandbox"]
    await call([*init, "--data", str(folder / "second")])
    assert "price_per_gpu_hour = 1000000\n" in (folder / "second/config.toml").read_text()
    dear = ["--watts", "200", "--kwh-price", "10"]  # 2 per hour, and a fifth more
    await call([*init, "--data", str(folder / "third"), *dear])
    assert "price_per_gpu_hour = 2400000\n" in (folder / "third/config.toml").read_text()


async def _until_active(client: AsyncClient) -> None:
    """The agent looks each second, and the market hears it with the next heartbeat."""
    async with asyncio.timeout(150):
        while [offer.state for offer in await client.offers()] != [NodeState.ACTIVE]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _until(client: AsyncClient, job_id: str, state: LeaseState) -> None:
    async with asyncio.timeout(150):
        while [lease.state for lease in (await client.job(job_id)).leases] != [state]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
