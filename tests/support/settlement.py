"""A marketplace that settles on a real localnet whose time the test drives, and that can be killed between any two of its steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from sqlalchemy import select

from tests.support.chain import STILL, Operator, make_network, running_localnet
from tests.support.market import open_world
from torg_chain import vault_operations
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import CapRow, PayoutRow
from torg_protocol.canonical import sha256_digest
from torg_protocol.caps import SignedCap
from torg_protocol.ids import VaultAddress
from torg_protocol.states import PayoutState
from torg_protocol.vault_messages import CapMessage, sign_message

DEPOSIT = 10_000_000


class Killed(BaseException):
    """Nothing of the process that was killed runs any more: no handler of ordinary errors may catch it."""


@dataclass
class Life:
    """Ends at step number `ends_at`; 0 lives for ever. `steps` are what it did, for the message of a failed test."""

    ends_at: int = 0
    passed: int = 0
    last: str = ""

    def step(self, name: str) -> None:
        self.passed += 1
        self.last = name
        if self.passed == self.ends_at:
            raise Killed(name)


class MortalChain:
    """A ChainClient of which every call is two steps: before it is made, and before its answer is used."""

    def __init__(self, chain: ChainClient, life: Life) -> None:
        self._chain, self._life = chain, life

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._chain, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._life.step(f"before {name}")
            answer = await method(*args, **kwargs)
            self._life.step(f"after {name}")
            return answer

        return call


def mortal(market: Market, life: Life) -> Market:
    """The same marketplace, whose process ends at one of its steps: around each call of the chain and each transaction."""

    class MortalMarket(Market):
        @contextlib.asynccontextmanager
        async def transaction(self) -> AsyncIterator[Unit]:
            life.step("before a transaction")
            async with Market.transaction(self) as unit:
                yield unit
                await unit.session.flush()
                life.step("before its commit")
            life.step("after its commit")

    values = {item.name: getattr(market, item.name) for item in fields(Market) if item.init}
    values["writer"] = asyncio.Lock()
    return MortalMarket(**{**values, "chain": MortalChain(market.chain, life)})  # type: ignore[arg-type]  # a ChainPort by its methods


@dataclass
class SettlingMarket:
    """`owed`: what was earned in all, by payout wallet; the chain must have paid exactly that in the end."""

    market: Market
    chain: ChainClient
    vault: str
    session: Keypair
    depositor: Keypair
    owed: dict[str, int]

    async def slots(self, count: int) -> None:
        await self.chain.localnet("torg_advance_slots", [count])

    async def reorg(self, slots: int) -> None:
        await self.chain.localnet("torg_reorg", [slots])

    async def earn(self, amount: int, wallet: str | None = None) -> str:
        """Books earned money of a node that waits to be captured; returns its wallet."""
        wallet = wallet or str(Keypair().pubkey())
        self.owed[wallet] = self.owed.get(wallet, 0) + amount
        total = sum(self.owed.values())
        message = CapMessage(self.market.network.chain_id, bytes(Pubkey.from_string(self.vault)), total, 2_000_000_000)
        async with self.market.transaction() as unit:
            payout_id = unit.new_id("pay")
            entries = ledger.move(ledger.free(self.vault), ledger.payable(self.vault, wallet), amount)
            await ledger.post(unit.session, key=f"test:{payout_id}", cause="a test", entries=entries, at_ms=unit.now_ms)
            unit.session.add(
                PayoutRow(
                    payout_id=payout_id,
                    vault=self.vault,
                    lease_id="lease_of_a_test",
                    payout_address=wallet,
                    amount=amount,
                    record_digest=sha256_digest(payout_id.encode()),
                    state=PayoutState.PENDING,
                    created_at_ms=unit.now_ms,
                )
            )
            unit.session.add(
                CapRow(
                    vault=self.vault,
                    cap=total,
                    valid_until_s=message.valid_until,
                    signer=str(self.session.pubkey()),
                    signature=str(sign_message(self.session, message)),
                )
            )
        return wallet

    async def newest_cap(self) -> SignedCap:
        async with self.market.reading() as unit:
            row = (await unit.session.scalars(select(CapRow).order_by(CapRow.cap.desc()).limit(1))).one()
        return SignedCap(
            vault=VaultAddress(self.vault),
            cap=row.cap,
            valid_until_s=row.valid_until_s,
            signer=row.signer,
            signature=row.signature,
        )

    async def settle_once(self, market: Market | None = None) -> None:
        """One pass of the worker, then one slot."""
        await settle_due(market or self.market, hurry=True)
        await advance_settlements(market or self.market)
        await self.slots(1)

    async def settle_all(self, market: Market | None = None) -> None:
        """Passes until nothing waits any more. Fails after far more than are ever needed."""
        for number in range(60):
            await self.settle_once(market)
            if not await self.unpaid():
                return
            if number > 20:
                await self.slots(60)  # blockhashes die
        raise AssertionError(f"not settled: {await self.unpaid()}")

    async def unpaid(self) -> list[tuple[str, str]]:
        async with self.market.reading() as unit:
            query = select(PayoutRow.payout_id, PayoutRow.state).where(PayoutRow.state != PayoutState.FINALIZED)
            return [(str(name), str(state)) for name, state in await unit.session.execute(query)]

    async def assert_paid_exactly_once(self) -> None:
        """On chain: every wallet has what it earned, the vault the rest; and the books say the same."""
        mint = self.market.network.mint_pubkey
        for wallet, amount in self.owed.items():
            assert await self.chain.token_balance(Pubkey.from_string(wallet), mint) == amount, wallet
        total = sum(self.owed.values())
        state = await self.chain.existing_vault(self.vault)
        assert (state.settled, state.balance) == (total, DEPOSIT - total)
        async with self.market.reading() as unit:
            assert await ledger.problems(unit.session) == []
            assert await ledger.balance(unit.session, ledger.chain(self.vault)) == total - DEPOSIT
            for wallet in self.owed:
                assert await ledger.balance(unit.session, ledger.payable(self.vault, wallet)) == 0


@contextlib.asynccontextmanager
async def settling_market(folder: Path, *, policy: MarketPolicy | None = None) -> AsyncIterator[SettlingMarket]:
    async with running_localnet(folder / "chain", slot_ms=STILL) as localnet, ChainClient(localnet.rpc_url) as chain:
        async with open_world(folder, policy=policy) as world, passing_slots(chain):
            operator = Operator(world.market.identity, world.market.capture_key, Keypair())
            network = await make_network(chain, operator, localnet.genesis_hash)
            session, depositor = Keypair(), Keypair()
            vault = await open_funded_vault(chain, network, session, depositor=depositor)
            values = {item.name: getattr(world.market, item.name) for item in fields(Market) if item.init}
            market = Market(**{**values, "network": network, "chain": chain})
            await refresh_vault(market, vault)
        async with open_world(folder, policy=policy) as again:
            values = {item.name: getattr(again.market, item.name) for item in fields(Market) if item.init}
            market = Market(**{**values, "network": network, "chain": chain})
            yield SettlingMarket(market, chain, vault, session, depositor, {})


@contextlib.asynccontextmanager
async def passing_slots(chain: ChainClient) -> AsyncIterator[None]:
    """Time passes while the body waits for finality."""

    async def run() -> None:
        while True:
            await chain.localnet("torg_advance_slots", [1])
            await asyncio.sleep(0.01)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def open_funded_vault(
    chain: ChainClient, network: Network, session: Keypair, *, deposit: int = DEPOSIT, depositor: Keypair | None = None
) -> str:
    depositor = depositor or Keypair()
    await chain.faucet(depositor.pubkey(), deposit)
    _, vault = await vault_operations.open_vault(
        chain, network, depositor=depositor, signer=session.pubkey(), grace_s=4 * 3600, deposit=deposit
    )
    return str(vault)
