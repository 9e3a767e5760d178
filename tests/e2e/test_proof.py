"""A real node proves its hardware to a real marketplace, and the evidence can be judged again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from scripts.market_processes import call, script
from tests.support.small_market import SmallMarket, running_market

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


async def test_a_node_proves_its_hardware_and_its_owner_sees_it(tmp_path: Path) -> None:
    async with running_market(tmp_path, market=SmallMarket(tmp_path, proof_interval="10s")) as market:
        status = await until_proven(tmp_path / "node")
        assert status["hardware"]["units"][0]["gops"] >= 1
        async with market.client() as client:
            (offer,) = await client.offers()
        assert offer.proof is not None
        assert offer.proof.state == "proven"

        _, text = await call([script("torg-node"), "reputation", "--data", str(tmp_path / "node"), "--json"])
        assert (json.loads(text)["permille"], json.loads(text)["proof"]["state"]) == (1000, "proven")

        options = ["--data", str(tmp_path / "marketplace"), "--rpc-url", market.rpc_url]
        _, listed = await call([script("torg-marketplace"), "proof", "list", status["node"], *options])
        done = [proof for proof in json.loads(listed) if proof["state"] == "judged"]
        code, replayed = await call([script("torg-marketplace"), "proof", "replay", done[-1]["proof_id"], *options])
        assert (code, json.loads(replayed)["same"]) == (0, True)


async def until_proven(data: Path) -> dict:  # type: ignore[type-arg]
    async with asyncio.timeout(180):
        while True:
            _, text = await call([script("torg-node"), "status", "--data", str(data), "--json"])
            status: dict = json.loads(text)  # type: ignore[type-arg]
            if status["hardware"] and status["hardware"]["state"] == "proven":
                return status
            await asyncio.sleep(0.5)
