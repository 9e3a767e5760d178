"""Settle: payouts that wait become one capture per vault, and a capture lands exactly once.

plan, sign, store the bytes (settlement_plan) -> send -> learn its fate

The bytes and their signature are stored before they are sent. In doubt the same bytes go again; new ones are made only when the old
ones are provably dead. A crash between any two of these steps leaves a state from which the next pass goes on.
"""

from __future__ import annotations

import logging

from sqlalchemy import select

from torg_chain.errors import ChainUnavailable, TransactionExpired, TransactionRejected
from torg_marketplace.flow.landed import catch_up
from torg_marketplace.flow.one_by_one import one_by_one
from torg_marketplace.flow.refunds import work_credit_off
from torg_marketplace.flow.settlement_moves import apply_finalized, bury, move_settlement, skipped_addresses
from torg_marketplace.flow.settlement_plan import IN_FLIGHT, build, due_vaults, make_plan
from torg_marketplace.flow.unit import Market
from torg_marketplace.logs import about
from torg_marketplace.rules.settlement import Action, Evidence, Fate, next_action
from torg_marketplace.storage.money_models import SettlementRow
from torg_protocol.errors import TorgError
from torg_protocol.states import SettlementState

log = logging.getLogger(__name__)
_GONE = -1  # settled total of a vault that is closed


async def settle_due(market: Market, *, hurry: bool = False) -> int:
    """Stores a capture for every vault whose payouts are due; `advance_settlements` sends them. Returns how many.

    `hurry`: do not wait for age or threshold. One vault's trouble does not hold up the others. Raises ChainUnavailable.
    """
    await work_credit_off(market)
    async with market.reading() as unit:
        vaults = await due_vaults(unit, hurry=hurry)
    built = 0
    for vault in vaults:
        async with market.reading() as unit:
            plan = await make_plan(unit, vault)
        if plan is None:
            continue
        try:
            built += await build(market, plan)
        except ChainUnavailable:
            raise
        except TorgError as problem:
            log.warning("vault %s is not settled now: %s", vault, problem)
    return built


async def advance_settlements(market: Market) -> int:
    """Moves every capture in flight one step, whatever happens to the others. Returns how many moved. Raises ChainUnavailable; nothing is lost by
    that."""
    async with market.reading() as unit:
        query = select(SettlementRow.settlement_id).where(SettlementRow.state.in_(IN_FLIGHT))
        ids = (await unit.session.scalars(query.order_by(SettlementRow.created_at_ms))).all()

    async def advance(settlement_id: str) -> bool:
        with about(settlement_id=settlement_id):
            return await _advance(market, settlement_id)

    return await one_by_one(ids, advance)


async def _advance(market: Market, settlement_id: str) -> bool:
    async with market.reading() as unit:
        row = await unit.session.get_one(SettlementRow, settlement_id)
        state, raw, expected = SettlementState(row.state), row.raw, row.expected_settled
        vault, signature, last_valid = row.vault, row.signature, row.last_valid_block_height
    if state is SettlementState.BUILT:
        # From here on nobody knows whether it was sent: that is written down first.
        async with market.transaction() as unit:
            await move_settlement(unit, settlement_id, SettlementState.UNKNOWN)
        await _send(market, settlement_id, raw)
        return True
    evidence = await _evidence(market, vault, signature, last_valid)
    match next_action(state, expected, evidence):
        case Action.WAIT:
            return False
        case Action.RESEND:
            await _send(market, settlement_id, raw)
            return False
        case Action.FINALIZE:
            skipped = await market.chain.skipped_payees(signature)
            if skipped is None:
                return False
            async with market.transaction() as unit:
                addresses = await skipped_addresses(unit, settlement_id, skipped)
                await apply_finalized(unit, settlement_id, addresses, evidence.slot)
        case Action.CONFIRM:
            async with market.transaction() as unit:
                await move_settlement(unit, settlement_id, SettlementState.CONFIRMED)
        case Action.ROLL_BACK:
            async with market.transaction() as unit:
                await move_settlement(unit, settlement_id, SettlementState.UNKNOWN, detail="a fork dropped it")
        case Action.BURY:
            async with market.transaction() as unit:
                await bury(unit, settlement_id, "it never landed, and its blockhash is dead")
        case Action.CATCH_UP:
            if not await catch_up(market, vault):
                return False
            if evidence.settled == _GONE:
                await _bury_with_vault(market, settlement_id)
    return True


async def _bury_with_vault(market: Market, settlement_id: str) -> None:
    """What has landed before the closing is in the books now. If this was not among it, it never will be."""
    async with market.transaction() as unit:
        row = await unit.session.get_one(SettlementRow, settlement_id)
        if row.state == SettlementState.UNKNOWN:
            await bury(unit, settlement_id, "it never landed, and its vault is closed")


async def _evidence(market: Market, vault: str, signature: str, last_valid: int) -> Evidence:
    """The order matters: a status that is read before the height could miss what lands in between."""
    expired = await market.chain.block_height() > last_valid
    state = await market.chain.vault(vault)
    status = await market.chain.signature_status(signature)
    return Evidence(Fate(status.status.value), expired, state.settled if state else _GONE, status.slot)


async def _send(market: Market, settlement_id: str, raw: bytes) -> None:
    """A refusal is noted and nothing else: whether these bytes are dead is decided by height and settled total alone."""
    detail = ""
    try:
        await market.chain.send(raw)
    except (TransactionRejected, TransactionExpired) as refused:
        detail = refused.message
    async with market.transaction() as unit:
        row = await unit.session.get_one(SettlementRow, settlement_id)
        row.sent_at_ms = unit.now_ms
        row.detail = detail
