"""What a cluster does on a bad day, through the real process: transactions that are lost, forks, and readers in the middle of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from solana.rpc.commitment import Confirmed, Finalized, Processed
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

from tests.support.chain import STILL, running_localnet
from torg_chain.errors import TransactionExpired, TransactionRejected
from torg_chain.network import LOCALNET_MINT
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import SignedTransaction, sign_transaction

MINT = Pubkey.from_string(LOCALNET_MINT)


async def payment(chain: ChainClient, payer: Keypair, to: Pubkey, lamports: int) -> SignedTransaction:
    blockhash, last_valid = await chain.latest_blockhash()
    moving = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=to, lamports=lamports))
    return sign_transaction([moving], [payer], blockhash, last_valid)


async def pass_slots(chain: ChainClient, count: int) -> None:
    await chain.localnet("torg_advance_slots", [count])


async def lamports_at_each_level(chain: ChainClient, address: Pubkey) -> list[int]:
    return [(await chain._rpc.get_balance(address, level)).value for level in (Processed, Confirmed, Finalized)]


async def test_readers_see_what_their_commitment_level_has(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        paid = await payment(chain, payer, to, 10**7)
        await chain.send(paid.raw)

        assert await lamports_at_each_level(chain, to) == [10**7, 0, 0]
        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.PROCESSED
        await pass_slots(chain, 1)
        assert await lamports_at_each_level(chain, to) == [10**7, 10**7, 0]
        await pass_slots(chain, 2)
        assert await lamports_at_each_level(chain, to) == [10**7, 10**7, 10**7]
        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.FINALIZED


async def test_a_fork_takes_back_what_was_confirmed_and_the_same_bytes_land_again(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        paid = await payment(chain, payer, to, 10**7)
        before = await chain.lamports(payer.pubkey())
        await chain.send(paid.raw)
        await pass_slots(chain, 1)
        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.CONFIRMED

        assert await chain.localnet("torg_reorg", [2]) == 1

        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.NOT_FOUND
        assert await lamports_at_each_level(chain, to) == [0, 0, 0]
        assert await chain.lamports(payer.pubkey()) == before
        assert await chain.accounts_exist([to]) == [False]
        await chain.send(paid.raw)
        await pass_slots(chain, 3)
        assert await lamports_at_each_level(chain, to) == [10**7] * 3


async def test_a_fork_does_not_reach_what_is_final_nor_the_faucets_gifts(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        await chain.send((await payment(chain, payer, to, 10**7)).raw)
        await pass_slots(chain, 3)
        await chain.send((await payment(chain, payer, to, 10**6)).raw)
        await chain.faucet(to, 5)

        assert await chain.localnet("torg_reorg", [3]) == 1

        assert await chain.lamports(to) == 10**7 + 10**9
        assert await chain.token_balance(to, MINT) == 5
        with pytest.raises(TransactionRejected, match="takes back 1 to 3 slots"):
            await chain.localnet("torg_reorg", [4])


async def test_a_transaction_on_a_blockhash_of_the_dead_fork_never_lands(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        await pass_slots(chain, 2)
        paid = await payment(chain, payer, to, 10**7)  # confirmed blockhash, one slot old
        await chain.localnet("torg_reorg", [2])

        with pytest.raises(Exception, match="blockhash is dead"):
            await chain.send(paid.raw)


async def test_the_state_after_a_fork_survives_sigkill(tmp_path: Path) -> None:
    payer, kept, undone = Keypair(), Keypair().pubkey(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 9)
        await chain.send((await payment(chain, payer, kept, 10**7)).raw)
        await pass_slots(chain, 2)
        dropped = await payment(chain, payer, undone, 10**6)
        await chain.send(dropped.raw)
        await chain.localnet("torg_reorg", [1])
        await chain.send((await payment(chain, payer, kept, 10**5)).raw)
        await pass_slots(chain, 1)
        wanted = [await chain.lamports(key) for key in (payer.pubkey(), kept, undone)]
        slot = await chain.slot()

        await localnet.kill()
        await localnet.start()

        assert [await chain.lamports(key) for key in (payer.pubkey(), kept, undone)] == wanted
        assert await chain.slot() == slot + 1  # the process ticks once when it starts
        assert (await chain.signature_status(dropped.signature)).status is TransactionStatus.NOT_FOUND
        await chain.send(dropped.raw)
        await pass_slots(chain, 1)
        assert await chain.lamports(undone) == 10**6


async def test_a_lost_transaction_is_answered_as_if_it_were_taken(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path, slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        await chain.localnet("torg_drop", [1])
        paid = await payment(chain, payer, to, 10**7)

        assert await chain.send(paid.raw) == paid.signature
        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.NOT_FOUND
        assert await chain.send(paid.raw) == paid.signature
        assert (await chain.signature_status(paid.signature)).status is TransactionStatus.PROCESSED


@pytest.mark.parametrize("fault", ["--drop", "--reorg"])
async def test_a_client_that_resends_gets_through_a_bad_cluster_and_pays_once(tmp_path: Path, fault: str) -> None:
    """Half of everything is lost, or every fifth slot is a fork. What is finalized is finalized once."""
    payer, to = Keypair(), Keypair().pubkey()
    chance = "0.5" if fault == "--drop" else "0.2"
    bad = running_localnet(
        tmp_path, fault, chance, "--seed", "7", slot_ms=400
    )  # a blockhash lives for 60 s, also of a client that is starved
    async with bad as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        landed = 0
        while landed < 3:
            paid = await payment(chain, payer, to, 10**7)
            # On a blockhash that a fork took away it never lands: it expires, and only then another one is built.
            with contextlib.suppress(TransactionExpired):
                await chain.send_and_confirm(paid, until=TransactionStatus.FINALIZED, timeout_s=150)
                landed += 1
        assert (await chain._rpc.get_balance(to, Finalized)).value == 3 * 10**7


@pytest.mark.parametrize("wrong", [["--drop", "1"], ["--reorg", "-0.1"], ["--drop", "often"]])
async def test_a_probability_that_is_none_is_refused_at_start(tmp_path: Path, wrong: list[str]) -> None:
    import asyncio
    import sys

    command = [sys.executable, "-m", "torg_chain.localnet", "--data", str(tmp_path), *wrong]
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(started.communicate(), timeout=120)

    assert started.returncode == 2
    assert f"argument {wrong[0]}: {wrong[1]!r} is not a probability" in said.decode()
