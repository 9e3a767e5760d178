"""An RPC node on its bad days: every odd answer becomes ChainUnavailable with what asking again is good for, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from solders.keypair import Keypair

from tests.contract.chain.test_localnet_faults import payment
from tests.support.chain import running_localnet
from torg_chain.errors import ChainUnavailable, Retry, TransactionRejected
from torg_chain.rpc import ChainClient, TransactionStatus


def error(code: int, message: str = "no", **more: object) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message, **more}})


ANSWERS = {
    "behind": (200, error(-32005, "Node is behind by 42 slots", data={"numSlotsBehind": 42}), "rpc_error", Retry.SOON),
    "unhealthy, without its data": (200, error(-32005, "Node is unhealthy"), "rpc_error", Retry.SOON),
    "has not reached the slot that was asked for": (200, error(-32016), "chain_behind", Retry.SOON),
    "a code that nobody knows": (200, error(-32097), "rpc_error", Retry.SOON),
    "internal": (200, error(-32603), "rpc_error", Retry.SOON),
    "rate limit in JSON": (200, error(429, "Too many requests from your IP"), "rpc_rate_limited", Retry.LATER),
    "rate limit in HTTP": (429, "slow down", "rpc_rate_limited", Retry.LATER),
    "overloaded": (503, "busy", "rpc_http_error", Retry.SOON),
    "broken": (500, "", "rpc_http_error", Retry.SOON),
    "wants a key": (403, error(-32052, "API key is not allowed"), "rpc_http_error", Retry.NEVER),
    "not there": (404, "", "rpc_http_error", Retry.NEVER),
    "does not know the method": (200, error(-32601, "Method not found"), "rpc_refused", Retry.NEVER),
    "not JSON": (200, "<html>welcome</html>", "rpc_answer_malformed", Retry.SOON),
    "empty": (200, "", "rpc_answer_malformed", Retry.SOON),
    "another JSON": (200, "{}", "rpc_answer_malformed", Retry.SOON),
    "cut off": (200, '{"jsonrpc":"2.0","id":0,"result":', "chain_unavailable", Retry.SOON),
}


@dataclass
class OddNode:
    """Passes on to a real one, except for `script`: (method or "", status, text, how often)."""

    upstream: str = ""
    script: list[tuple[str, int, str, int]] = field(default_factory=list)
    url: str = ""
    after_sending: list[tuple[str, int, str, int]] = field(default_factory=list)  # takes its place then

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        for number, (method, status, text, left) in enumerate(self.script):
            if left and method in {"", body["method"]}:
                self.script[number] = (method, status, text, left - 1)
                headers = {"retry-after": "1"} if status == 429 else {}
                return web.Response(status=status, text=text, headers=headers, content_type="application/json")
        if body["method"] == "sendTransaction" and self.after_sending:
            self.script, self.after_sending = self.after_sending, []
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            passed = await http.post(self.upstream, json=body)
        return web.Response(body=passed.content, content_type="application/json")


@contextlib.asynccontextmanager
async def odd_node(upstream: str = "") -> AsyncIterator[OddNode]:
    node = OddNode(upstream)
    app = web.Application()
    app.router.add_post("/", node.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield node
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_odd_answer_says_what_asking_again_is_good_for(name: str) -> None:
    status, text, code, retry = ANSWERS[name]
    async with odd_node() as node, ChainClient(node.url) as chain:
        node.script = [("", status, text, 1)]
        with pytest.raises(ChainUnavailable) as caught:
            await chain.slot()
        assert (caught.value.code, caught.value.retry) == (code, retry)
        assert (caught.value.field, caught.value.value) == ("rpc_url", node.url)
        assert caught.value.retry_after_s == (1.0 if status == 429 else None)
        assert caught.value.to_problem()["retry"] == retry


async def test_what_is_wrong_with_a_transaction_is_no_trouble_of_the_node(tmp_path: Path) -> None:
    payer = Keypair()
    async with (
        running_localnet(tmp_path) as localnet,
        odd_node(localnet.rpc_url) as node,
        ChainClient(node.url) as chain,
    ):
        unfunded = await payment(chain, payer, Keypair().pubkey(), 10**7)
        with pytest.raises(TransactionRejected):
            await chain.send(unfunded.raw)
        node.script = [("sendTransaction", 200, error(-32602, "invalid transaction"), 1)]
        with pytest.raises(TransactionRejected):
            await chain.send(unfunded.raw)
        node.script = [("sendTransaction", 200, error(-32005), 1)]
        with pytest.raises(ChainUnavailable):
            await chain.send(unfunded.raw)


async def test_a_transaction_that_was_sent_is_followed_through_rate_limits_and_outages(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with (
        running_localnet(tmp_path) as localnet,
        odd_node(localnet.rpc_url) as node,
        ChainClient(node.url) as chain,
    ):
        await chain.faucet(payer.pubkey(), 1)
        paid = await payment(chain, payer, to, 10**7)

        node.after_sending = [("getSignatureStatuses", 429, "", 1), ("getSignatureStatuses", 503, "", 1)]
        await chain.send_and_confirm(paid, until=TransactionStatus.FINALIZED)
        assert await chain.lamports(to) == 10**7
        assert [left for *_, left in node.script] == [0, 0]  # both were met, and survived

        node.script = [("getSignatureStatuses", 403, "", 1)]
        with pytest.raises(ChainUnavailable):
            await chain.send_and_confirm(await payment(chain, payer, to, 10**6))
