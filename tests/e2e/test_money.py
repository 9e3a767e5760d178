"""Real processes and money: a marketplace that dies for good, and nodes and clients who get theirs without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from solders.pubkey import Pubkey

from scripts.market_processes import call, script
from tests.support.small_market import TUSD, SmallMarket, run, running_market, submit
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_chain.rpc import ChainClient
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

SLEEP = ["python", "-c", "import time; time.sleep(2)"]
LONG = ["python", "-c", "import time; time.sleep(600)"]


async def _lose_transactions(market: SmallMarket, count: int) -> None:
    async with ChainClient(market.rpc_url) as chain:
        await chain.localnet("torg_drop", [count])


async def _node_status(market: SmallMarket) -> dict[str, object]:
    _, out = await call([script("torg-node"), "status", "--data", str(market.folder / "node"), "--json"])
    return dict(json.loads(out))


async def test_a_node_is_paid_although_the_marketplace_dies_before_its_capture_lands(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market, market.client() as client:
        assert market.node is not None
        assert market.marketplace is not None
        await _lose_transactions(market, 100_000)
        job = await run(client, SLEEP)
        assert job.state is JobState.SUCCEEDED

        async def holds_an_order() -> bool:
            return bool((await _node_status(market))["orders"])

        await eventually(holds_an_order)
        await market.marketplace.kill()  # for good
        owed = (await _node_status(market))["exposure"]
        assert owed == (job.final_amount or 0) - (job.final_amount or 0) * 200 // 10_000

        await _lose_transactions(market, 0)
        node = Pubkey.from_string(str(market.node.ready["node"]))
        async with ChainClient(market.rpc_url) as chain:
            await chain.localnet("requestAirdrop", [str(node), 10**8])
            settle = [script("torg-node"), "settle", "--data", str(market.folder / "node"), "--json"]
            _, out = await call(settle)
            mint = Pubkey.from_string((await client.vaults.remembered_network()).mint)
            payout = Pubkey.from_string(str(market.node.ready["payout_address"]))
            assert await chain.token_balance(payout, mint) == owed
        assert [item["amount"] for item in json.loads(out)] == [owed]
        assert (await _node_status(market))["exposure"] == 0
        _, again = await call(settle)
        assert json.loads(again) == []

        await market.start_marketplace()  # and if it comes back, its books follow
        await _until_booked(client, job.final_amount or 0)


async def test_a_node_that_is_owed_too_much_stops_and_takes_no_more(tmp_path: Path) -> None:
    market = SmallMarket(tmp_path, max_unpaid="0.001", usage_interval="1s")
    async with running_market(tmp_path, market=market), market.client() as client:
        await _lose_transactions(market, 100_000)
        nearly_all = await run(client, LONG, limits={"max_duration": "3s"})
        assert (nearly_all.reason, nearly_all.leases[0].billed_ms) == ("max_duration", 3_000)
        # Nobody leases more than what the node would work for unpaid.
        job = await submit(client, LONG, limits={"max_duration": "3500ms"})

        async def ended() -> bool:
            return [lease.reason for lease in (await client.job(job.job_id)).leases] not in ([], [None])

        await eventually(ended)
        assert [lease.reason for lease in (await client.job(job.job_id)).leases] == ["exposure_limit"]
        assert (await client.job(job.job_id)).state is JobState.QUEUED
        status = await _node_status(market)
        assert isinstance(status["exposure"], int)
        assert 700 < status["exposure"] < 1_000  # with what ran it would have been more
        await client.cancel(job.job_id)


@pytest.mark.slow
async def test_a_node_stops_work_for_a_vault_that_closes_before_it_could_be_paid(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market, market.client() as client:
        job = await submit(client, LONG, limits={"max_duration": "10m"})

        async def in_state(state: str) -> bool:
            return [str(lease.state) for lease in (await client.job(job.job_id)).leases] == [state]

        await eventually(lambda: in_state("running"))
        entry = client.journal.vault((await client.market()).marketplace)
        await client.vaults.start_close(entry, await client.vaults.network())
        async with ChainClient(market.rpc_url) as chain:
            await chain.localnet("torg_advance_clock", [entry.grace_s - 1_700])

        await eventually(lambda: in_state("released"))
        (lease,) = (await client.job(job.job_id)).leases
        assert lease.reason == "exposure_limit"
        await client.cancel(job.job_id)


async def _until_booked(client: AsyncClient, amount: int) -> None:
    """The node's share by the node's own transaction; the fee, whose account did not exist then, by a later one."""
    vault = client.journal.vault((await client.market()).marketplace).address

    async def booked() -> bool:
        return (await client.vaults.status(vault)).chain_settled == amount

    await eventually(booked)
    paid = [item for item in await client.vaults.settlements(vault) if item.state == "finalized"]
    assert sum(payout.amount for item in paid for payout in item.payouts) == amount


async def test_a_client_gets_its_rest_back_and_audits_with_nothing_but_an_rpc_node(tmp_path: Path) -> None:
    """The commands of docs/how-to/when-the-marketplace-is-gone.md, in their order."""
    async with running_market(tmp_path) as market, market.client() as client:
        home = ["--home", str(client.config.home), "--marketplace", market.url]

        async def torg(*arguments: str, check: bool = True) -> tuple[int, str]:
            return await call([script("torg"), *home, *arguments], check=check)

        assert market.marketplace is not None
        job = await run(client, SLEEP)
        paid = job.final_amount or 0
        assert paid > 0
        await _until_booked(client, paid)
        await torg("receipts")
        _, told = await torg("vault", "statement", "--since", "1d", "--json")
        assert json.loads(told)["closing"] == {
            "free": 5 * TUSD - paid,
            "held": 0,
            "owed": 0,
            "in_vault": 5 * TUSD - paid,
        }
        _, words = await torg("vault", "statement")
        assert [
            cause
            for line in words.splitlines()
            for cause in ("deposits seen", "admitted", "usage countersigned", "work accepted", "ended", "captured by")
            if cause in line
        ] == ["deposits seen", "admitted", "usage countersigned", "work accepted", "ended", "captured by"]
        code, refused = await torg("vault", "statement", "--since", "yesterday", check=False)
        assert (code, "duration_invalid" in refused) == (1, True)
        await market.marketplace.kill()

        _, status = await torg("vault", "status", "--rpc-url", market.rpc_url, "--json")
        assert {name: json.loads(status)[name] for name in ("journal_cap", "chain_settled", "free")} == {
            "journal_cap": paid,
            "chain_settled": paid,
            "free": 5 * TUSD - paid,
        }
        _, first = await torg("vault", "close", "--rpc-url", market.rpc_url)
        assert "in 60 min" in first or "closing" in first
        code, early = await torg("vault", "close", "--rpc-url", market.rpc_url, check=False)
        assert (code, "vault_grace_running" in early) == (1, True)
        async with ChainClient(market.rpc_url) as chain:
            await chain.localnet("torg_advance_clock", [4 * 3600])
            await chain.localnet("torg_advance_slots", [1_600])  # an address is never free again for so many
            # No capture was left behind, so everything but the job's price comes back.
            _, second = await torg("vault", "close", "--rpc-url", market.rpc_url, "--json")
            assert json.loads(second)["returned"] == 5 * TUSD - paid
            mint = Pubkey.from_string((await client.vaults.remembered_network()).mint)
            assert await chain.token_balance(client.keypair.pubkey(), mint) == 20 * TUSD - paid
        code, report = await torg("audit", "--rpc-url", market.rpc_url, "--json")
        assert (code, json.loads(report)["holds"], json.loads(report)["paid"]) == (0, True, paid)
