"""A whole market in a token of other decimals than the localnet's six: every amount that people type or read is right to the unit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from solders.keypair import Keypair

from scripts.market_processes import call, script, tail
from tests.support.mints import OwnMint
from tests.support.small_market import SmallMarket, run
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_chain.rpc import ChainClient
from torg_chain.wallet import save_keypair
from torg_protocol.money import format_amount
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow]

SLEEP = ["python", "-c", "import time; time.sleep(2)"]


@pytest.mark.parametrize(("decimals", "price", "more"), [(9, "0.36", "1.234567891"), (2, "3600", "1.25")])
async def test_deposit_job_settlement_receipts_audit_and_closing(
    tmp_path: Path, decimals: int, price: str, more: str
) -> None:
    mint, wallet = OwnMint(decimals), Keypair()
    market = SmallMarket(tmp_path, max_unpaid="1000", price=price, mint=str(mint.address))
    home = tmp_path / "client"
    save_keypair(wallet, home / "wallet.json")
    try:
        await market.start_localnet()
        async with ChainClient(market.rpc_url) as chain:
            await mint.make(chain)
            await chain.faucet(wallet.pubkey(), 1)
            await mint.give(chain, wallet.pubkey(), 500 * mint.token)
        await market.start_marketplace()
        await market.start_node()
        await _whole_story(market, mint, wallet, home, more)
    finally:
        await market.stop()


async def _whole_story(market: SmallMarket, mint: OwnMint, wallet: Keypair, home: Path, more: str) -> None:
    async def torg(*arguments: str, check: bool = True) -> tuple[int, str]:
        argv = [script("torg"), "--home", str(home), "--marketplace", market.url, *arguments]
        return await call(argv, check=check)

    code, said = await torg("vault", "open", "--deposit", "200." + "1" * (mint.decimals + 1), check=False)
    assert (code, "amount_too_precise" in said) == (1, True)
    code, said = await torg("vault", "open", "--deposit", "1" + "0" * 9, check=False)
    assert (code, "wallet_underfunded" in said) == (1, True)
    _, opened = await torg("vault", "open", "--deposit", "200", "--json")
    assert json.loads(opened)["deposit"] == 200 * mint.token
    deposited = 200 * mint.token + await _pay_by_wallet_app(market, mint, wallet, home, more)

    async with AsyncClient(ClientConfig(home, market.url)) as client:
        job = await run(
            client, SLEEP, limits={"max_duration": "1m"}
        )  # 200 of them are enough for that, at 3,600 an hour
        paid = job.final_amount or 0
        assert job.state is JobState.SUCCEEDED
        assert paid > 0

        async def is_settled() -> bool:
            vault = client.journal.vault((await client.market()).marketplace)
            return (await client.vaults.status(vault.address)).chain_settled == paid

        await eventually(is_settled)
    _, receipts = await torg("receipts")
    assert f" {format_amount(paid, mint.decimals)} " in receipts
    code, audit = await torg("audit", "--rpc-url", market.rpc_url, "--json")
    assert (code, json.loads(audit)["holds"], json.loads(audit)["paid"]) == (0, True, paid)

    await torg("vault", "close")
    async with ChainClient(market.rpc_url) as chain:
        await chain.localnet("torg_advance_clock", [4 * 3600])
        await chain.localnet("torg_advance_slots", [1_600])
        _, closed = await torg("vault", "close", "--json")
        assert json.loads(closed)["returned"] == deposited - paid
        assert await chain.token_balance(wallet.pubkey(), mint.address) == 500 * mint.token - paid
    reconcile = ["reconcile", "--data", str(market.folder / "marketplace"), "--rpc-url", market.rpc_url, "--json"]
    argv = [script("torg-marketplace"), *reconcile]
    code, books = await call(argv, env={"TORG_MARKETPLACE_MINT": market.mint})
    assert (code, json.loads(books)["differences"], json.loads(books)["lost"]) == (0, [], {})


async def _pay_by_wallet_app(market: SmallMarket, mint: OwnMint, wallet: Keypair, home: Path, amount: str) -> int:
    """`torg vault deposit --qr`: the code and the URL on standard error, then the wait for the payment."""
    log = market.folder / "qr.log"
    argv = [script("torg"), "--home", str(home), "--marketplace", market.url, "vault", "deposit", amount, "--qr"]
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=file)

    async def shown() -> bool:
        assert process.returncode is None, tail(log)
        return "solana:" in log.read_text() and log.read_text().endswith("\n")

    try:
        await eventually(shown)
        code = log.read_text()
        assert any(block in code for block in "█▀▄")
        url = next(line for line in code.splitlines() if line.startswith("solana:"))
        async with ChainClient(market.rpc_url) as chain:
            paid = await mint.pay(chain, url, wallet)
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, f"deposited {amount} " in out.decode()) == (0, True), tail(log)
    return paid
