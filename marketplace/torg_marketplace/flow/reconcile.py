"""Reconcile: the books and the chain, compared to the unit. A difference stops the vault's payouts; nothing is guessed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import func, select

from torg_chain.errors import ChainBehind, ChainUnavailable
from torg_marketplace.flow.landed import catch_up
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.flow.write_off import write_off
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import EntryRow, HoldRow, PayoutRow, SettlementRow, VaultRow
from torg_protocol.errors import Conflict, NotFound, TorgError
from torg_protocol.states import OVER_PAYOUT_STATES, PayoutState, SettlementState

log = logging.getLogger(__name__)
_CAPTURED = "captured"


@dataclass(frozen=True, slots=True)
class Difference:
    """`vault` is empty for problems of the books as a whole."""

    vault: str
    what: str
    books: int
    chain: int

    def __str__(self) -> str:
        return f"{self.vault or 'ledger'}: {self.what}: books say {self.books}, chain says {self.chain} ({self.chain - self.books:+})"


async def reconcile(market: Market) -> list[Difference]:
    """Every difference, named. Vaults with one are blocked until a person has looked. What an RPC node says that is behind what was seen before
    proves nothing: its vaults are compared another time. Raises ChainUnavailable."""
    async with market.reading() as unit:
        found = [Difference("", problem, 0, 0) for problem in await ledger.problems(unit.session)]
        addresses = (await unit.session.scalars(select(VaultRow.address).where(VaultRow.closed.is_(False)))).all()
    for address in addresses:
        try:
            found += await _reconcile_vault(market, address)
        except ChainBehind as behind:
            log.warning("vault %s is not compared with the chain now: %s", address, behind.message)
    return found


async def blocked_vaults(market: Market) -> dict[str, str]:
    """Vaults whose payouts are stopped, and why."""
    async with market.reading() as unit:
        query = select(VaultRow.address, VaultRow.blocked).where(VaultRow.blocked.is_not(None))
        return {str(address): str(why) for address, why in await unit.session.execute(query)}


async def lost_payouts(market: Market) -> dict[str, int]:
    """By vault, base units that were earned and never captured before the vault was closed."""
    async with market.reading() as unit:
        query = select(PayoutRow.vault, func.sum(PayoutRow.amount)).where(PayoutRow.state == PayoutState.LOST)
        return {str(vault): int(total) for vault, total in await unit.session.execute(query.group_by(PayoutRow.vault))}


async def unblock(market: Market, address: str, *, because: str) -> None:
    """A person has looked: payouts of this vault go on. Only when books and chain agree; raises Conflict `vault_differs` otherwise,
    NotFound `vault_unknown`, ChainUnavailable. `because` goes to the log."""
    async with market.reading() as unit:
        if await unit.session.get(VaultRow, address) is None:
            raise NotFound(
                "this marketplace has not seen that vault", code="vault_unknown", field="vault", value=address
            )
    await catch_up(market, address)
    if found := await _differences(market, address, block=True):
        raise Conflict(
            "books and chain still differ: " + "; ".join(map(str, found)),
            code="vault_differs",
            field="vault",
            value=address,
            hint="nothing is paid out of it until they agree",
        )
    async with market.transaction() as unit:
        row = await unit.session.get_one(VaultRow, address)
        log.warning("payouts of vault %s go on, because: %s (stopped for: %s)", address, because, row.blocked)
        row.blocked = None


async def watch_fee_payer(market: Market) -> int:
    """Lamports of the key that pays for captures; below the policy's mark it says so loudly. Raises ChainUnavailable."""
    key = market.capture_key.pubkey()
    lamports = market.vitals.fee_payer_lamports = await market.chain.lamports(key)
    if lamports < market.policy.fee_payer_low_lamports:
        log.error(
            "the fee payer %s holds %s lamports, less than %s: without fees nothing is settled; send it some",
            key,
            lamports,
            market.policy.fee_payer_low_lamports,
        )
    return lamports


def fee_payer_warning(market: Market) -> str | None:
    """What is wrong with the balance of the key that pays for captures; None: nothing, or it was not looked at yet."""
    lamports = market.vitals.fee_payer_lamports
    if lamports is None or lamports >= market.policy.fee_payer_low_lamports:
        return None
    return f"the fee payer {market.capture_key.pubkey()} holds {lamports} lamports, less than {market.policy.fee_payer_low_lamports}"


async def watch_vaults(market: Market) -> int:
    """Brings every open vault's row up to date: deposits and closings by anybody's wallet, also after downtime."""
    async with market.reading() as unit:
        addresses = (await unit.session.scalars(select(VaultRow.address).where(VaultRow.closed.is_(False)))).all()
    for address in addresses:
        try:
            await refresh_vault(market, address)
        except ChainBehind as behind:
            log.info("vault %s is looked at again later: %s", address, behind.message)
        except ChainUnavailable:
            raise
        except TorgError as problem:
            log.warning("vault %s cannot be used: %s", address, problem)
    await write_off(market)
    return len(addresses)


async def _reconcile_vault(market: Market, address: str) -> list[Difference]:
    """Looks twice: a capture that comes to rest between reading the chain and reading the books differs once, not twice."""
    if not await _differences(market, address, block=False):
        return []
    await catch_up(market, address)
    return await _differences(market, address, block=True)


async def _differences(market: Market, address: str, *, block: bool) -> list[Difference]:
    async with market.reading() as unit:
        seen = (await unit.session.get_one(VaultRow, address)).chain_slot
    state = await market.chain.vault(address, min_slot=seen)
    async with market.transaction() as unit:
        row = await unit.session.get_one(VaultRow, address)
        if row.active_settlement is not None:
            return []  # in motion: compared when it has come to rest
        if state is not None and state.slot < row.chain_slot:
            raise ChainBehind("somebody else has seen more of it meanwhile", field="vault", value=address)
        settled, balance = (state.settled, state.balance) if state else (row.chain_settled, 0)
        captured = await _captured(unit, address)
        on_books = -await ledger.balance(unit.session, ledger.chain(address))
        found = []
        if captured != settled:
            found.append(Difference(address, _CAPTURED, captured, settled))
        elif state is not None and balance < on_books:
            # More is a deposit that the watcher will book; less can only be a withdrawal that nobody may make.
            found.append(Difference(address, "balance", on_books, balance))
        owed, waiting = await _payable(unit, address)
        if owed != waiting:
            found.append(Difference(address, "payable against payouts that wait", owed, waiting))
        held = sum(
            (await unit.session.scalars(select(HoldRow.max_amount).where(HoldRow.vault == address, HoldRow.open))).all()
        )
        if held != row.open_maximum:
            found.append(Difference(address, "open holds against open_maximum", row.open_maximum, held))
        # Captures that the books have not heard of are explained, or blocked, by who reads them: flow/landed.py.
        ahead = state is not None and state.settled > row.chain_settled
        if block and (why := "; ".join(str(item) for item in found if not (ahead and item.what == _CAPTURED))):
            row.blocked = why
            log.error("payouts of vault %s are stopped: %s", address, why)
        return found


async def _payable(unit: Unit, address: str) -> tuple[int, int]:
    """What the ledger owes to anybody out of this vault, and what payouts say that are not final."""
    prefix = ledger.payable(address, "")
    in_ledger = select(func.sum(EntryRow.amount)).where(
        EntryRow.account >= prefix, EntryRow.account < prefix[:-1] + chr(ord(prefix[-1]) + 1)
    )
    in_payouts = select(func.sum(PayoutRow.amount)).where(
        PayoutRow.vault == address, PayoutRow.state.not_in(OVER_PAYOUT_STATES)
    )
    return int(await unit.session.scalar(in_ledger) or 0), int(await unit.session.scalar(in_payouts) or 0)


async def _captured(unit: Unit, address: str) -> int:
    query = select(SettlementRow).where(
        SettlementRow.vault == address, SettlementRow.state == SettlementState.FINALIZED
    )
    return sum(row.outcome["paid"] for row in await unit.session.scalars(query) if row.outcome)
