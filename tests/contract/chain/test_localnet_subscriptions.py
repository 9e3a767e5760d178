"""Subscriptions as a watcher uses them: solana-py's own WebSocket client against the real process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from solana.rpc.commitment import Confirmed, Finalized, Processed
from solana.rpc.jsonrpc import SolanaJsonRpcError
from solana.rpc.models import MemcmpOpts
from solana.rpc.websocket_api import SolanaWsClient
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.rpc.config import RpcTransactionLogsFilterMentions
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from spl.token.constants import TOKEN_PROGRAM_ID
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.chain import STILL, LocalnetProcess, running_localnet
from torg_chain.network import LOCALNET_MINT
from torg_chain.rpc import ChainClient
from torg_chain.transactions import SignedTransaction, sign_transaction
from torg_chain.vault import token_account_of

MINT = Pubkey.from_string(LOCALNET_MINT)


class Watcher:
    """A payer on a still cluster, and a subscriber beside it."""

    def __init__(self, localnet: LocalnetProcess, chain: ChainClient, ws: SolanaWsClient) -> None:
        self.localnet, self.chain, self.ws = localnet, chain, ws
        self.payer, self.to = Keypair(), Keypair().pubkey()

    async def payment(self, lamports: int) -> SignedTransaction:
        blockhash, last_valid = await self.chain.latest_blockhash()
        moving = transfer(TransferParams(from_pubkey=self.payer.pubkey(), to_pubkey=self.to, lamports=lamports))
        return sign_transaction([moving], [self.payer], blockhash, last_valid)

    async def pay(self, lamports: int) -> SignedTransaction:
        paid = await self.payment(lamports)
        await self.chain.send(paid.raw)
        return paid

    async def pass_slots(self, count: int) -> None:
        await self.chain.localnet("torg_advance_slots", [count])

    async def told(self) -> Any:
        return (await asyncio.wait_for(self.ws.recv(), timeout=60)).result

    async def is_quiet(self) -> bool:
        """Whatever the last request caused has been sent before its answer."""
        try:
            await asyncio.wait_for(self.ws.recv(), timeout=0.1)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def watching(data: Path) -> AsyncIterator[Watcher]:
    async with (
        running_localnet(data, slot_ms=STILL) as localnet,
        ChainClient(localnet.rpc_url) as chain,
        SolanaWsClient(localnet.rpc_url.replace("http", "ws")) as ws,
    ):
        watcher = Watcher(localnet, chain, ws)
        await chain.faucet(watcher.payer.pubkey(), 1)
        yield watcher


async def test_a_signature_is_told_once_when_it_has_its_level(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        paid = await it.payment(10**7)
        await it.ws.signature_subscribe(signature=Signature.from_string(paid.signature), commitment=Finalized)
        await it.chain.send(paid.raw)
        await it.pass_slots(2)
        assert await it.is_quiet()
        await it.pass_slots(1)

        assert (await it.told()).value.err is None
        await it.pass_slots(3)
        assert await it.is_quiet()
        # asked for afterwards it is told at once, a failed one with its error
        await it.ws.signature_subscribe(signature=Signature.from_string(paid.signature), commitment=Confirmed)
        assert (await it.told()).value.err is None


async def test_an_account_is_told_at_its_level_and_again_after_a_fork(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        await it.ws.account_subscribe(pubkey=it.to, commitment=Confirmed, encoding="base64")
        await it.pay(10**7)
        assert await it.is_quiet()
        await it.pass_slots(1)
        assert (await it.told()).value.lamports == 10**7

        await it.chain.localnet("torg_reorg", [2])

        gone = (await it.told()).value
        assert (gone.lamports, bytes(gone.data)) == (0, b"")


async def test_logs_tell_who_mentions_an_address(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        await it.pay(5 * 10**6)  # before: not told
        mentions = RpcTransactionLogsFilterMentions(it.to)
        subscribed = await it.ws.logs_subscribe(filter_=mentions, commitment=Processed)
        first = await it.pay(10**7)
        stranger = Watcher(it.localnet, it.chain, it.ws)
        await it.chain.faucet(stranger.payer.pubkey(), 1)
        await stranger.pay(10**7)
        second = await it.pay(10**6)

        told = [(await it.told()).value for _ in range(2)]
        assert [str(one.signature) for one in told] == [first.signature, second.signature]
        assert [one.err for one in told] == [None, None]
        assert "Program 11111111111111111111111111111111 success" in told[0].logs
        await it.chain.localnet("torg_reorg", [1])
        await it.chain.send(first.raw)
        assert str((await it.told()).value.signature) == first.signature, "what lands again is told again"
        await it.ws.unsubscribe(subscribed)
        await it.pay(10**5)
        assert await it.is_quiet()


async def test_a_program_tells_accounts_that_match(tmp_path: Path) -> None:
    """As a watcher of deposits does it: token accounts of one owner."""
    async with watching(tmp_path) as it:
        owner = Keypair().pubkey()
        filters: list[int | MemcmpOpts] = [165, MemcmpOpts(offset=32, bytes=str(owner))]
        await it.ws.program_subscribe(
            program_id=TOKEN_PROGRAM_ID, commitment=Confirmed, encoding="base64", filters=filters
        )
        await it.chain.faucet(Keypair().pubkey(), 3)
        assert await it.is_quiet()
        await it.chain.faucet(owner, 7)

        value = (await it.told()).value
        assert value.pubkey == token_account_of(owner, MINT)
        assert int.from_bytes(bytes(value.account.data)[64:72], "little") == 7


async def test_slots_and_roots_and_several_subscriptions_of_one_connection(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        slots = await it.ws.slot_subscribe()
        roots = await it.ws.root_subscribe()
        now = await it.chain.slot(Processed)
        await it.pass_slots(1)

        told = [await asyncio.wait_for(it.ws.recv(), timeout=60) for _ in range(2)]
        by_number = {one.subscription: one.result for one in told}
        assert by_number[slots.subscription_id].slot == now + 1
        assert by_number[slots.subscription_id].root == by_number[roots.subscription_id] == now - 2


async def test_a_connection_ends_with_the_cluster_and_a_new_one_goes_on(tmp_path: Path) -> None:
    """What a watcher does after an outage: connect again, ask for what it missed, subscribe again."""
    async with watching(tmp_path) as it:
        await it.ws.account_subscribe(pubkey=it.to, commitment=Processed, encoding="base64")
        await it.localnet.kill()
        with pytest.raises(ConnectionClosed):
            await it.told()
        await it.localnet.start()

        async with SolanaWsClient(it.localnet.rpc_url.replace("http", "ws")) as again:
            await again.account_subscribe(pubkey=it.to, commitment=Processed, encoding="base64")
            await it.pay(10**7)
            assert (await asyncio.wait_for(again.recv(), timeout=60)).result.value.lamports == 10**7


async def test_a_stopping_cluster_does_not_wait_for_its_subscribers(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        await it.ws.account_subscribe(pubkey=it.to)
        await it.localnet.stop()

        assert it.localnet.process is None  # `stop` gives it ten seconds
        with pytest.raises(ConnectionClosed):
            await it.told()


async def test_requests_that_make_no_sense_get_their_error_and_the_connection_lives(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        with pytest.raises(SolanaJsonRpcError, match="Method not found"):
            await it.ws.vote_subscribe()
        async with connect(it.localnet.rpc_url.replace("http", "ws")) as raw:
            told = []
            for text in (
                "no json",
                "[1]",
                '{"id": 9, "method": "accountSubscribe", "params": ["short"]}',
                '{"id": 10}',
            ):
                await raw.send(text)
                told.append(json.loads(await asyncio.wait_for(raw.recv(), timeout=60)))
            assert [(one["id"], one["error"]["code"]) for one in told] == [(n, -32602) for n in (None, None, 9, 10)]
            await raw.send('{"id": 11, "method": "slotUnsubscribe", "params": [12345]}')
            assert "Invalid subscription id." in await asyncio.wait_for(raw.recv(), timeout=60)
        await it.ws.slot_subscribe()
        await it.pass_slots(1)
        assert (await it.told()).slot > 0


async def test_a_subscriber_that_does_not_read_is_cut_off_and_holds_nobody_up(tmp_path: Path) -> None:
    from torg_chain.localnet.subscriptions import MAX_WAITING, Subscriber

    slow = Subscriber()
    for number in range(MAX_WAITING + 2):
        slow.post({"n": number})

    assert slow.is_behind
    waiting = [slow.outbox.get_nowait() for _ in range(slow.outbox.qsize())]
    assert waiting[-1] is None


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("torg_faucet", [str(MINT), 0], "the faucet gives more than 0 and at most 1000000000000 base units at once"),
        ("torg_faucet", [str(MINT), 10**12 + 1], "at most 1000000000000 base units"),
        ("requestAirdrop", [str(MINT), 0], "an airdrop is more than 0 and at most 1,000 SOL"),
        ("requestAirdrop", [str(MINT), 1000 * 10**9 + 1], "at most 1,000 SOL"),
        ("requestAirdrop", ["not a key", 1], "Invalid params"),
        ("torg_advance_clock", [-1], "the clock goes forward only"),
        ("torg_advance_slots", [0], "1 to 10,000 slots"),
        ("torg_advance_slots", [10_001], "1 to 10,000 slots"),
        ("torg_drop", [-1], "0 or more"),
    ],
)
async def test_limits_of_faucet_and_clock_are_said(tmp_path: Path, method: str, params: list[Any], said: str) -> None:
    from torg_chain.localnet.cluster import open_cluster
    from torg_chain.localnet.faults import Faults
    from torg_chain.localnet.rpc import Methods

    methods = Methods(open_cluster(tmp_path, finalize_after_slots=3), Faults()).table
    with pytest.raises(Exception, match=said if said != "Invalid params" else "Invalid|base58|wrong"):
        methods[method](params)
