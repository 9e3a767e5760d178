"""Commands of the operator while the chain's RPC node is away: what is about the database is done, the rest ends with an error."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.support.chain import running_localnet
from torg_marketplace.app import open_edge
from torg_marketplace.settings import Settings


async def run(data: Path, rpc_url: str, *command: str) -> tuple[int, str, str]:
    name, *options = command
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "torg_marketplace", name, "--data", str(data), "--rpc-url", rpc_url, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(150):  # it used to wait for ever
            said, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(), complained.decode()


async def test_only_what_needs_the_chain_asks_it(tmp_path: Path) -> None:
    data = tmp_path / "market"
    async with running_localnet(tmp_path / "chain") as localnet:
        rpc_url = localnet.rpc_url
        async with open_edge(Settings.read({"data": data, "rpc_url": rpc_url}), "http://127.0.0.1"):
            pass  # a marketplace was served here
        assert (await run(data, rpc_url, "reconcile", "--json"))[0] == 0

        kept = data / "network.json"
        found = kept.read_text()
        kept.write_text(json.dumps(json.loads(found) | {"genesis_hash": "4" * 44}))
        code, _, complained = await run(data, rpc_url, "reconcile")
        assert (code, "another chain than the books" in complained) == (1, True)
        kept.write_text(found)

    code, said, _ = await run(data, rpc_url, "ban", "image", "evil.example/miner", "--because", "it mines")
    assert code == 0, said
    code, said, complained = await run(data, rpc_url, "bans")
    assert (code, [item["subject"] for item in json.loads(said)]) == (0, ["evil.example/miner"])
    assert complained == ""  # a command that did what it was asked for has nothing else to say

    await run(data, rpc_url, "credit-grant", "acct_ci", "3")
    code, said, _ = await run(data, rpc_url, "credit-grant", "acct_ci", "2", "--take-back")
    assert (code, json.loads(said)["available"]) == (0, 1_000_000)
    code, _, complained = await run(data, rpc_url, "credit-grant", "acct_ci", "2", "--take-back")
    assert (code, "credit_amount_invalid" in complained) == (1, True)
    assert "(amount = '2 tokens')" in complained
    assert "at most 1 tokens can be taken back" in complained

    code, said, complained = await run(data, rpc_url, "erase", "not-an-account")
    assert (code, said) == (1, "")
    assert "subject_invalid" in complained

    assert (await run(data, rpc_url, "migrate", "--to", "0001"))[0] == 0  # as an older release has it
    code, said, complained = await run(data, rpc_url, "bans")
    assert (code, said, "schema_older" in complained) == (1, "", True)
    assert (await run(data, rpc_url, "migrate"))[0] == 0

    code, said, complained = await run(data, rpc_url, "reconcile")
    assert (code, said) == (1, "")
    assert complained.count("the chain's RPC node does not answer") == 1
    assert rpc_url in complained
    assert "Traceback" not in complained


async def test_of_a_market_that_was_never_served_only_the_chain_knows_its_token(tmp_path: Path) -> None:
    data, rpc_url = tmp_path / "market", "http://127.0.0.1:9"
    assert (await run(data, rpc_url, "init"))[0] == 0  # its keys, no more
    code, _, complained = await run(data, rpc_url, "bans")
    assert code == 1
    assert "the chain's RPC node does not answer" in complained
