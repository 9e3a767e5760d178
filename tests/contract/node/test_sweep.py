"""Sweeps on the real token program: what leaves, what stays, what it costs, and that nobody who is killed in between moves anything twice."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.chain import STILL, localnet_network, make_operator, running_localnet
from tests.support.node_settings import settings_in
from tests.support.settlement import Killed, Life, MortalChain, passing_slots
from torg_chain.errors import TransactionRejected
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.transfers import build_transfer
from torg_chain.vault import token_account_of
from torg_node.journal import Journal
from torg_node.settings import write_settings
from torg_node.sweep import CONFIRMED_FACT, Sweeper, only_one
from torg_node.sweep_command import add_sweep_options, sweep_command
from torg_node.sweep_journal import SweepState
from torg_node.sweep_plan import SweepPlan
from torg_protocol.errors import Conflict, Invalid, TorgError

HOUR_MS = 3_600_000
DEAD_AFTER_SLOTS = 160


@dataclass
class Purse:
    """A node's key with what it earned, and its owner's cold wallet."""

    chain: ChainClient
    network: Network
    folder: Path
    key: Keypair = field(default_factory=Keypair)
    cold: Pubkey = field(default_factory=lambda: Keypair().pubkey())
    now_ms: int = HOUR_MS

    def sweeper(self, journal: Journal, life: Life | None = None) -> Sweeper:
        chain = self.chain if life is None else MortalChain(self.chain, life)
        return Sweeper(chain, self.network, self.key, journal, self.folder, lambda: self.now_ms, poll_every_s=0.01)  # type: ignore[arg-type]  # by its methods

    def make_node(self, plan: SweepPlan | None) -> None:
        """For the command, which reads it."""
        (self.folder / "node.json").touch(mode=0o600)
        (self.folder / "node.json").write_text(self.key.to_json())
        write_settings(settings_in(self.folder, network=self.network, sweep=plan))

    async def earn(self, amount: int) -> None:
        await self.chain.faucet(self.key.pubkey(), amount)
        await self.slots(5)

    async def slots(self, count: int) -> None:
        await self.chain.localnet("torg_advance_slots", [count])

    async def hot_and_cold(self) -> tuple[int, int]:
        mint = self.network.mint_pubkey
        return await self.chain.token_balance(self.key.pubkey(), mint), await self.chain.token_balance(self.cold, mint)

    async def arrivals(self) -> int:
        """Transactions that have brought anything to the cold wallet."""
        account = token_account_of(self.cold, self.network.mint_pubkey)
        return len(await self.chain.received_by_reference(account, account, self.network.mint_pubkey))


class EndsAt(Life):
    """At the so-manyth step of this name."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__()
        self._name, self._left = name, times

    def step(self, name: str) -> None:
        self._left -= name == self._name
        if not self._left:
            raise Killed(name)


@contextlib.asynccontextmanager
async def purse(folder: Path) -> AsyncIterator[tuple[Purse, Journal]]:
    async with running_localnet(folder / "chain", slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        journal = Journal(folder / "journal.sqlite")
        network = localnet_network(localnet.rpc_url, localnet.genesis_hash, make_operator())
        try:
            yield Purse(chain, network, folder), journal
        finally:
            journal.close()


async def said(folder: Path, *options: str) -> str:
    """By `torg-node sweep`."""
    lines: list[str] = []
    parser = argparse.ArgumentParser()
    add_sweep_options(parser)
    arguments = parser.parse_args(list(options))
    arguments.data, arguments.json = folder, False
    await asyncio.to_thread(sweep_command, arguments, lines.append)
    return "\n".join(lines)


async def test_what_is_above_the_floor_leaves_once_with_a_memo(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal):
        await own.earn(1_000)
        found = await own.sweeper(journal).prospect(str(own.cold), keep=300)
        assert (found.amount, found.lamports_missing) == (700, 0)
        assert found.cost.fee == 5_000
        assert found.cost.rent > 2_000_000  # the cold wallet has no token account yet
        before = await own.chain.lamports(own.key.pubkey())
        async with passing_slots(own.chain):
            entry = await own.sweeper(journal).now(str(own.cold), keep=300)
            assert await own.sweeper(journal).now(str(own.cold), keep=300) is None
        assert entry is not None
        assert entry.state is SweepState.FINALIZED
        assert await own.hot_and_cold() == (300, 700)
        assert before - await own.chain.lamports(own.key.pubkey()) == found.cost.fee + found.cost.rent
        assert b"torg sweep 1" in entry.transaction.raw
        assert journal.sweeps.totals() == {str(own.cold): (1, 700)}
        assert (await own.sweeper(journal).prospect(str(own.cold), keep=0)).cost.rent == 0


async def test_a_plan_waits_for_its_confirmation_and_its_time(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal), passing_slots(own.chain):
        plan = SweepPlan(to=str(own.cold), keep=100, at_least=500, every="1h")
        await own.earn(150)
        with pytest.raises(Conflict) as refused:
            await own.sweeper(journal).by_plan(plan)
        assert refused.value.code == "sweep_unconfirmed"
        journal.set_fact(CONFIRMED_FACT, str(own.cold))

        assert await own.sweeper(journal).by_plan(plan) is not None  # the first one, of 50
        await own.earn(60)
        assert await own.sweeper(journal).by_plan(plan) is None  # the hour is not over
        await own.earn(440)
        assert await own.sweeper(journal).by_plan(plan) is not None  # so much is not left lying
        await own.earn(1)
        own.now_ms += HOUR_MS
        assert await own.sweeper(journal).by_plan(plan) is not None
        assert await own.hot_and_cold() == (100, 551)
        other = SweepPlan(to=str(Keypair().pubkey()), every="1h")
        with pytest.raises(Conflict, match="nobody has confirmed"):
            await own.sweeper(journal).by_plan(other)


async def test_whoever_is_killed_at_any_step_moves_everything_once(tmp_path: Path) -> None:
    """One life after the other on one chain. With the blockhash dead before the next life begins, a fork takes back what was not final."""
    ends = [
        ("after lamports", 1),
        ("after latest_blockhash", 1),
        ("before send", 1),  # written down
        ("after send", 1),
        ("after signature_status", 2),
        ("before block_height", 3),
    ]
    async with purse(tmp_path) as (own, journal):
        expected = 0
        for (name, times), is_dead in itertools.product(ends, (False, True)):
            await own.earn(100)
            expected += 100
            async with passing_slots(own.chain):
                with pytest.raises(Killed):
                    await own.sweeper(journal, EndsAt(name, times)).now(str(own.cold), keep=0)
            if is_dead:
                await own.chain.localnet("torg_reorg", [2])
                await own.slots(DEAD_AFTER_SLOTS)
            async with passing_slots(own.chain):
                for _ in range(3):  # of the dead one, its end; then what is there; then nothing
                    entry = await own.sweeper(journal).now(str(own.cold), keep=0)
            assert entry is None, name
            assert await own.hot_and_cold() == (0, expected), name
        states = {entry.state for entry in journal.sweeps.newest(1_000)}
        assert states == {SweepState.FINALIZED, SweepState.DEAD}
        assert journal.sweeps.totals()[str(own.cold)] == (await own.arrivals(), expected)


async def test_a_lost_transaction_is_sent_again_and_not_built_again(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal):
        await own.earn(100)
        await own.chain.localnet("torg_drop", [2])
        async with passing_slots(own.chain):
            entry = await own.sweeper(journal).now(str(own.cold), keep=0)
        assert entry is not None
        assert (entry.state, entry.number, await own.arrivals()) == (SweepState.FINALIZED, 1, 1)


async def test_money_that_its_owner_moved_meanwhile_ends_the_sweep_and_moves_nothing(tmp_path: Path) -> None:
    """The bytes wait in the journal; the tokens have gone elsewhere by hand."""
    async with purse(tmp_path) as (own, journal):
        await own.earn(100)
        with contextlib.suppress(Killed):
            await own.sweeper(journal, EndsAt("before send", 1)).now(str(own.cold), keep=0)
        assert journal.sweeps.under_way() is not None
        blockhash, last_valid = await own.chain.latest_blockhash()
        by_hand = build_transfer(
            own.network,
            owner=own.key,
            to=Keypair().pubkey(),
            amount=90,
            memo="by hand",
            micro_lamports_per_unit=0,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
        )
        async with passing_slots(own.chain):
            await own.chain.send_and_confirm(by_hand)
        with pytest.raises(TransactionRejected):
            await own.sweeper(journal).now(str(own.cold), keep=0)
        await own.slots(DEAD_AFTER_SLOTS)
        entry = await own.sweeper(journal).now(str(own.cold), keep=0)
        assert entry is not None
        assert entry.state is SweepState.DEAD
        async with passing_slots(own.chain):
            await own.sweeper(journal).now(str(own.cold), keep=0)
        assert await own.hot_and_cold() == (0, 10)


async def test_wallets_that_are_none_and_fees_that_are_missing_are_named(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal), passing_slots(own.chain):
        await own.earn(100)
        sweeper = own.sweeper(journal)
        token_account = token_account_of(own.key.pubkey(), own.network.mint_pubkey)
        for wrong in (str(own.key.pubkey()), str(token_account), own.network.mint, own.network.program_id):
            with pytest.raises(Invalid) as refused:
                await sweeper.now(wrong, keep=0)
            assert refused.value.code == "wallet_invalid"
        poor = Purse(own.chain, own.network, own.folder)
        blockhash, last_valid = await own.chain.latest_blockhash()
        gift = build_transfer(
            own.network,
            owner=own.key,
            to=poor.key.pubkey(),
            amount=100,
            memo="",
            micro_lamports_per_unit=0,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
        )
        await own.chain.send_and_confirm(gift)
        await own.slots(5)
        with pytest.raises(Conflict) as missing:
            await poor.sweeper(journal).now(str(own.cold), keep=0)
        assert missing.value.code == "fees_missing"
        assert str(poor.key.pubkey()) in (missing.value.hint or "")
        assert journal.sweeps.newest(1) == []


async def test_the_command_asks_for_the_wallet_twice_and_shows_what_it_would_cost(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal), passing_slots(own.chain):
        own.make_node(SweepPlan(to=str(own.cold), every="7d"))
        await own.earn(1_500_000)
        stranger = str(Keypair().pubkey())

        async def command(*options: str) -> str:
            return await said(tmp_path, *options)

        for options, code in (
            (("--now",), "sweep_unconfirmed"),
            (("--now", "--confirm", stranger), "confirmation_differs"),
            (("--now", "--to", "cold"), "wallet_invalid"),
            (("--now", "--keep", "much"), "amount_invalid"),
            (("--confirm", own.network.mint, "--to", own.network.mint), "wallet_invalid"),
        ):
            with pytest.raises(TorgError) as refused:
                await command(*options)
            assert refused.value.code == code, options
        assert f"NOT CONFIRMED: torg-node sweep --confirm {own.cold}" in await command()
        shown = await command("--dry-run", "--keep", "0.5")
        assert f"1 would go to {own.cold} (1.5 is there, 0.5 stays); nothing was sent" in shown
        assert "0.000005 SOL and, once, 0.00203928 SOL for the wallet's token account" in shown
        assert await command("--now", "--to", stranger, "--confirm", stranger, "--at-least", "2") == "nothing to sweep"
        assert journal.fact(CONFIRMED_FACT) is None  # that was for once
        assert str(own.cold) in await command("--confirm", str(own.cold))
        assert (await command("--now")).startswith(f"sweep 1: 1.5 to {own.cold}: ")
        assert (await command()).startswith(f"1.5 swept in 1 sweep; to {own.cold}, every 7d\n")


async def test_who_has_nothing_to_sweep_needs_no_fees_for_it(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, _):
        own.make_node(None)
        assert await own.chain.lamports(own.key.pubkey()) == 0
        cold = str(own.cold)
        assert await said(tmp_path, "--now", "--to", cold, "--confirm", cold) == "nothing to sweep"


async def test_two_processes_do_not_sweep_at_once(tmp_path: Path) -> None:
    async with purse(tmp_path) as (own, journal), passing_slots(own.chain):
        await own.earn(100)
        with only_one(tmp_path), pytest.raises(Conflict) as refused:
            await own.sweeper(journal).now(str(own.cold), keep=0)
        assert refused.value.code == "sweep_under_way"
        results = await asyncio.gather(
            *(own.sweeper(journal).now(str(own.cold), keep=0) for _ in range(3)), return_exceptions=True
        )
        assert sum(isinstance(result, Conflict) for result in results) == 2
        assert (await own.hot_and_cold(), await own.arrivals()) == ((0, 100), 1)
