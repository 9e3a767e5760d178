"""A client's bad day by the commands that people type: a dispute, its decision, the refund on both sides, a backup, and leaving for good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.market_processes import call, script
from tests.support.small_market import run, running_market

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

SLEEP = ["python", "-c", "import time; time.sleep(2)"]


async def test_dispute_decision_refund_backup_and_deletion(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market, market.client() as client:
        home = ["--home", str(client.config.home), "--marketplace", market.url]
        data = ["--data", str(tmp_path / "marketplace"), "--rpc-url", market.rpc_url]

        async def torg(*arguments: str, check: bool = True) -> tuple[int, str]:
            return await call([script("torg"), *home, *arguments], check=check)

        async def operator(name: str, *arguments: str) -> Any:
            return json.loads((await call([script("torg-marketplace"), name, *data, *arguments]))[1])

        job = await run(client, SLEEP)
        paid = job.final_amount or 0
        await torg("dispute", job.job_id, "--reason", "the numbers are wrong")
        code, refused = await torg("account", "delete-data", "--yes", "--json", check=False)
        assert code == 1, refused
        (case,) = await operator("dispute", "list")
        decided = await operator("dispute", "decide", case["dispute_id"], "--refund", "40%", "--note", "faulty memory")
        assert decided["refunded"] == paid * 40 // 100
        _, told = await torg("disputes")
        assert "faulty memory" in told
        cost = json.loads((await torg("cost", "--json"))[1])
        assert (cost["refunded"], cost["jobs"][0]["refund_causes"]) == (paid * 40 // 100, ["dispute"])
        (refund,) = await operator("refunds")
        if refund["from_node"]:
            _, earned = await call(
                [script("torg-node"), "earnings", "--data", str(tmp_path / "node"), "--export", "csv"]
            )
            assert "dispute: faulty memory" in earned

        await operator("ban", "wallet", str(client.keypair.pubkey()), "--because", "a test")
        _, account = await torg("account", "show")
        assert "banned: a test" in account
        code, _ = await torg("quote", "no-such-file.yaml", check=False)
        assert code != 0
        await operator("backup", str(tmp_path / "one.backup"))
        replayed = await operator("replay-events", job.job_id)
        assert replayed["problems"] == []
        _, erased = await torg("account", "delete-data", "--yes", "--json")
        assert json.loads(erased)["jobs"] == 1
        assert (await client.job(job.job_id)).name == "erased"
