"""Tokens that the node's own key holds go to a cold wallet: now, or by the owner's plan while the agent runs.

For nodes that are paid to their own key. Each sweep is a transaction that is stored before it is sent: whoever is killed in between leaves its
bytes to the next one, which sends them again until they are final or provably dead. Only then another one is made, for what is there then.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from solana.rpc.commitment import Finalized
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.errors import TransactionExpired
from torg_chain.network import Network
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transfers import TransferCost, build_transfer, check_payable, transfer_cost
from torg_node.journal import Journal
from torg_node.sweep_journal import SweepEntry, SweepState
from torg_node.sweep_plan import SweepPlan
from torg_protocol.errors import Conflict, Invalid, TorgError, Unavailable
from torg_protocol.money import format_amount

log = logging.getLogger(__name__)
CONFIRMED_FACT = "sweep_confirmed"  # the wallet that the owner has named twice
KEPT_FOR_ORDERS_LAMPORTS = 100_000  # ten orders that the node may have to land itself
_LOOK_EVERY_S = 60.0
_DECIDED_WITHIN_S = 120.0  # a blockhash is dead after about a minute
_AFTER_A_REFUSAL_MS = 3_600_000  # each costs a fee


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a sweep would be now. Amounts in base units and lamports; `amount` 0: nothing is due."""

    to: str
    amount: int
    balance: int
    keep: int
    cost: TransferCost
    lamports: int

    @property
    def lamports_missing(self) -> int:
        return max(0, self.cost.needed + KEPT_FOR_ORDERS_LAMPORTS - self.lamports)


class Sweeper:
    """One at a time of a data folder, whichever process: the second is told `sweep_under_way`. Every call may raise ChainUnavailable,
    after which it is safe to call again."""

    def __init__(
        self,
        chain: ChainClient,
        network: Network,
        keypair: Keypair,
        journal: Journal,
        folder: Path,
        now_ms: Callable[[], int],
        poll_every_s: float = 0.5,
    ) -> None:
        self._chain, self._network, self._keypair, self._journal = chain, network, keypair, journal
        self._folder, self._now_ms, self._poll_every_s = folder, now_ms, poll_every_s

    async def run(self, plan: SweepPlan) -> None:
        """By the owner's plan, until cancelled."""
        told = ""
        while True:
            try:
                if (entry := await self.by_plan(plan)) is not None:
                    log.warning("%s", in_words(entry, self._network.decimals))
                told = ""
            except TorgError as problem:
                if problem.message != told:  # once, not each minute
                    log.warning("no sweep: %s", problem)
                told = problem.message
            except Exception:  # whatever an RPC node answers, the agent lives on
                log.exception("the sweep could not be looked at; trying again")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def by_plan(self, plan: SweepPlan) -> SweepEntry | None:
        """What is due, moved; None: nothing is. Raises Conflict `sweep_unconfirmed`, and what `now` raises."""
        with only_one(self._folder):
            if (entry := self._journal.sweeps.under_way()) is not None:
                return await self._followed(entry)
            if self._journal.fact(CONFIRMED_FACT) != plan.to:
                raise Conflict(
                    f"nobody has confirmed yet that {plan.to} is to have what this node earns",
                    code="sweep_unconfirmed",
                    field="sweep.to",
                    value=plan.to,
                    hint=f"torg-node sweep --confirm {plan.to}",
                )
            newest = self._journal.sweeps.newest(1)
            if newest and newest[0].state is SweepState.FAILED and self._is_recent(newest[0].at_ms):
                return None
            last = self._journal.sweeps.newest_finalized()
            amount = plan.amount_due(await self._balance(), last.at_ms if last else None, self._now_ms())
            return await self._swept(plan.to, plan.keep, amount)

    async def now(self, to: str, keep: int, at_least: int = 0) -> SweepEntry | None:
        """Everything above `keep`, if it is `at_least` so much. What another sweep left undecided comes first. Raises Invalid
        `wallet_invalid`, Conflict `fees_missing`, Unavailable `sweep_undecided`: it goes on with the next call."""
        with only_one(self._folder):
            if (entry := self._journal.sweeps.under_way()) is not None:
                return await self._followed(entry)
            above = max(0, await self._balance() - keep)
            return await self._swept(to, keep, above if above >= at_least else 0)

    async def prospect(self, to: str, keep: int, at_least: int = 0) -> Prospect:
        """Looks and moves nothing. Raises Invalid `wallet_invalid`."""
        balance = await self._balance()
        above = max(0, balance - keep)
        return await self._prospect(to, keep, above if above >= at_least else 0, balance)

    async def _prospect(self, to: str, keep: int, amount: int, balance: int) -> Prospect:
        target, own = Pubkey.from_string(to), self._keypair.pubkey()
        if target == own:
            raise Invalid("that is this node's own key", code="wallet_invalid", field="to", value=to)
        await check_payable(self._chain, target, field="to")
        cost = await transfer_cost(self._chain, self._network, owner=own, to=target)
        return Prospect(to, amount, balance, keep, cost, await self._chain.lamports(own))

    async def _swept(self, to: str, keep: int, amount: int) -> SweepEntry | None:
        if amount == 0:
            return None
        found = await self._prospect(to, keep, amount, amount + keep)
        _check_fees(found, self._keypair.pubkey())
        blockhash, last_valid = await self._chain.latest_blockhash()
        number = self._journal.sweeps.next_number()
        transaction = build_transfer(
            self._network,
            owner=self._keypair,
            to=Pubkey.from_string(to),
            amount=amount,
            memo=f"torg sweep {number}",
            micro_lamports_per_unit=found.cost.micro_lamports_per_unit,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
        )
        return await self._followed(self._journal.sweeps.begin(number, to, amount, self._now_ms(), transaction))

    async def _followed(self, entry: SweepEntry) -> SweepEntry:
        """Until the chain has decided."""
        deadline = asyncio.get_running_loop().time() + _DECIDED_WITHIN_S
        while asyncio.get_running_loop().time() < deadline:
            if (state := await self._advance(entry)) is not SweepState.SENDING:
                self._journal.sweeps.end(entry.number, state)
                return replace(entry, state=state)
            await asyncio.sleep(self._poll_every_s)
        raise Unavailable(
            f"the chain has not decided about sweep {entry.number} within {_DECIDED_WITHIN_S:g} s",
            code="sweep_undecided",
            field="signature",
            value=entry.transaction.signature,
            hint="the same bytes are sent again with the next look, and nothing else before",
        )

    async def _advance(self, entry: SweepEntry) -> SweepState:
        transaction = entry.transaction
        height = await self._chain.block_height()  # asked first: what is unknown after it was passed can never land
        status = (await self._chain.signature_status(transaction.signature)).status
        if status is TransactionStatus.FINALIZED:
            return SweepState.FINALIZED
        if height > transaction.last_valid_block_height:
            if status is TransactionStatus.NOT_FOUND:
                return SweepState.DEAD
            if status is TransactionStatus.FAILED:
                return SweepState.FAILED
        if status is TransactionStatus.NOT_FOUND:
            with contextlib.suppress(TransactionExpired):  # only the height proves that
                await self._chain.send(transaction.raw)
        return SweepState.SENDING

    async def _balance(self) -> int:
        return await self._chain.token_balance(self._keypair.pubkey(), self._network.mint_pubkey, Finalized)

    def _is_recent(self, at_ms: int) -> bool:
        return 0 <= self._now_ms() - at_ms < _AFTER_A_REFUSAL_MS


def _check_fees(found: Prospect, payer: Pubkey) -> None:
    """Raises Conflict `fees_missing`."""
    if found.lamports_missing:
        raise Conflict(
            f"the node's key holds {format_amount(found.lamports, 9)} SOL; the sweep costs {cost_in_words(found.cost)}",
            code="fees_missing",
            field="lamports",
            value=found.lamports,
            hint=f"send {format_amount(found.lamports_missing, 9)} SOL or more to {payer}",
        )


def cost_in_words(cost: TransferCost) -> str:
    rent = f" and, once, {format_amount(cost.rent, 9)} SOL for the wallet's token account" if cost.rent else ""
    kept = cost.kept + KEPT_FOR_ORDERS_LAMPORTS
    return f"{format_amount(cost.fee, 9)} SOL{rent}; {format_amount(kept, 9)} SOL must stay"


def in_words(entry: SweepEntry, decimals: int) -> str:
    amount = f"{format_amount(entry.amount, decimals)} to {entry.to}"
    match entry.state:
        case SweepState.FINALIZED:
            return f"sweep {entry.number}: {amount}: {entry.transaction.signature}"
        case SweepState.SENDING:
            return f"sweep {entry.number}: {amount}: on its way"
        case SweepState.DEAD:
            return f"sweep {entry.number}: {amount}: did not land, nothing was moved; tried again"
        case SweepState.FAILED:
            return f"sweep {entry.number}: {amount}: refused by the chain, nothing was moved: {entry.transaction.signature}"
        case _:
            assert_never(entry.state)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """The lock dies with its process. Raises Conflict `sweep_under_way`."""
    with (folder / "sweep.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "another process of this node sweeps just now",
                code="sweep_under_way",
                hint="torg-node sweep shows what becomes of it",
            ) from None
        yield
