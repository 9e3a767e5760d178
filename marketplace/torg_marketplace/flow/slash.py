"""Slash: after a failed audit, what stood behind the lease goes from the node's collateral to the client, once.

failed verdict -> WANTED -> (proposed on chain) PROPOSED -> a day, in which it can be cancelled -> (executed on chain) EXECUTED

The program has one proposal per collateral at a time, and forgets it when it is executed: the same one never pays twice. What is
believed is only the finalized account: its proposal by the evidence root, and its execution by the chain of roots that follows from it.
A transaction that got lost is sent again, one that landed shows there.
"""

from __future__ import annotations

import logging

from solders.instruction import Instruction
from solders.pubkey import Pubkey
from spl.token.instructions import create_idempotent_associated_token_account
from sqlalchemy import select, update

from torg_chain import instructions as program
from torg_chain.collateral_operations import can_be_slashed
from torg_chain.errors import TransactionExpired, TransactionRejected
from torg_chain.transactions import sign_transaction
from torg_chain.vault import DISPUTE_DELAY_S, VaultState, chained
from torg_marketplace.flow.one_by_one import one_by_one
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.audit_models import CollateralRow, SlashRow
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.moves import move_slash
from torg_protocol.canonical import digest_of
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import Digest
from torg_protocol.states import OPEN_SLASH_STATES, SlashState
from torg_protocol.usage import VerdictSummary

log = logging.getLogger(__name__)
RESEND_AFTER_MS = 60_000  # by then a transaction has landed or never will, most likely; sent again it does no harm


async def want_slash(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    """Notes that the stake behind this rejected lease is to be taken. Nothing when none stood behind it. Safe to repeat."""
    collateral = await unit.session.get(CollateralRow, lease.node_id)
    if lease.stake == 0 or collateral is None:
        return
    known = select(SlashRow.slash_id).where(SlashRow.lease_id == lease.lease_id)
    if await unit.session.scalar(known) is not None:
        return
    # Who has executed another's segment again and lied about it has harmed the client of that.
    harmed = job if job.checks_job is None else await unit.session.get_one(JobRow, job.checks_job)
    evidence = {
        "lease_id": lease.lease_id,
        "job_id": job.job_id,
        "node": lease.node_id,
        "client": harmed.client,
        "spec_digest": job.spec_digest,
        "outputs": lease.outputs,
        "verdict": verdict.wire(),
    }
    unit.session.add(
        SlashRow(
            slash_id=unit.new_id("slash"),
            lease_id=lease.lease_id,
            node_id=lease.node_id,
            collateral=collateral.address,
            client_vault=harmed.vault,
            amount=lease.stake,
            evidence=evidence,
            evidence_root=digest_of(evidence),
            state=SlashState.WANTED,
            created_at_ms=unit.now_ms,
            moved_at_ms=unit.now_ms,
        )
    )
    unit.wake("slash")


async def advance_slashes(market: Market) -> int:
    """Moves every open slash by what the chain shows, and sends what it waits for. Returns how many moved. Raises ChainUnavailable."""
    async with market.reading() as unit:
        query = select(SlashRow.slash_id).where(SlashRow.state.in_(OPEN_SLASH_STATES)).order_by(SlashRow.created_at_ms)
        ids = (await unit.session.scalars(query)).all()
    return await one_by_one(ids, lambda slash_id: _advance(market, slash_id))


async def cancel_slash(market: Market, slash_id: str, *, because: str) -> None:
    """The operator takes it back. Raises NotFound slash_unknown, Invalid because_missing, IllegalMove; Conflict slash_near when it may be
    executed at any moment."""
    if not because.strip():
        raise Invalid("say why", code="because_missing", field="--because", hint="node and client will ask")
    now_s = await market.chain.unix_time_s()
    async with market.transaction() as unit:
        row = await unit.session.get(SlashRow, slash_id)
        if row is None:
            raise NotFound("no such slash", code="slash_unknown", field="id", value=slash_id)
        if row.state == SlashState.PROPOSED and now_s >= row.execute_at_s:
            raise Conflict("it is being executed", code="slash_near", field="id", value=slash_id)
        await move_slash(unit.session, row, SlashState.CANCELLED, at_ms=unit.now_ms, detail=because)
    # Its proposal, if one is there, belongs to nobody now: the next slash of this collateral, or this, clears it away.
    await _clear(market, row.collateral, row.evidence_root)


async def _advance(market: Market, slash_id: str) -> bool:
    async with market.reading() as unit:
        row = await unit.session.get_one(SlashRow, slash_id)
        waits = row.sent_at_ms + RESEND_AFTER_MS > unit.now_ms
    state, now_s = await market.chain.vault(row.collateral), await market.chain.unix_time_s()
    if state is None:
        return await _move(market, slash_id, SlashState.FAILED, "the collateral was closed and taken back")
    if row.state == SlashState.WANTED:
        return await _propose(market, row, state, now_s, waits=waits)
    return await _execute(market, row, state, now_s, waits=waits)


async def _propose(market: Market, row: SlashRow, state: VaultState, now_s: int, *, waits: bool) -> bool:
    if _is_ours(row, state):
        return await _move(market, row.slash_id, SlashState.PROPOSED, seen=state)
    if row.roots_before and state.roots == chained(bytes.fromhex(row.roots_before), _root_of(row)):
        # An RPC node that lags made it look withdrawn: it was executed after all, and must never be proposed again.
        await _move(market, row.slash_id, SlashState.PROPOSED)
        return await _move(market, row.slash_id, SlashState.EXECUTED, seen=state)
    if waits:
        return False
    if state.slash is not None:
        await _clear_if_orphaned(market, row.collateral, f"sha256:{state.slash.evidence_root.hex()}")
        return False
    amount = min(row.amount, state.balance)
    if not can_be_slashed(state, amount, now_s):
        return await _move(market, row.slash_id, SlashState.FAILED, "nothing is left of it, or it closes too soon")
    proposal = program.propose_slash(
        market.network.program_pubkey,
        collateral=state.address,
        config=market.network.operator_pubkey,
        admin=market.identity.pubkey(),
        mint=market.network.mint_pubkey,
        client_vault=Pubkey.from_string(row.client_vault),
        amount=amount,
        evidence_root=_root_of(row),
    )
    await _send(market, row.slash_id, [proposal])
    return False


async def _execute(market: Market, row: SlashRow, state: VaultState, now_s: int, *, waits: bool) -> bool:
    if state.slash is None or not _is_ours(row, state):
        if state.roots == chained(bytes.fromhex(row.roots_before), _root_of(row)):
            return await _move(market, row.slash_id, SlashState.EXECUTED, seen=state)
        if state.slash is None and state.roots.hex() == row.roots_before:
            return await _move(market, row.slash_id, SlashState.WANTED, "it was not executed in time")
        log.error("slash %s: neither its proposal nor its execution is to be seen at %s", row.slash_id, row.collateral)
        return False
    if waits or now_s < state.slash.execute_at:
        return False
    if now_s > state.slash.execute_at + DISPUTE_DELAY_S:
        await _clear(market, row.collateral, row.evidence_root)
        return False
    admin, beneficiary = market.identity.pubkey(), state.slash.beneficiary
    execution = program.execute_slash(
        market.network.program_pubkey,
        collateral=state.address,
        config=market.network.operator_pubkey,
        admin=admin,
        mint=market.network.mint_pubkey,
        beneficiary=beneficiary,
    )
    account = create_idempotent_associated_token_account(admin, beneficiary, market.network.mint_pubkey)
    await _send(market, row.slash_id, [account, execution])
    return False


async def _clear_if_orphaned(market: Market, collateral: str, evidence_root: str) -> None:
    """A proposal that no open slash has sent (it was cancelled while its transaction was on the way) is in everybody's way."""
    async with market.reading() as unit:
        query = select(SlashRow.slash_id).where(
            SlashRow.collateral == collateral,
            SlashRow.evidence_root == evidence_root,
            SlashRow.state.in_(OPEN_SLASH_STATES),
        )
        owned = await unit.session.scalar(query)
    if owned is None:
        await _clear(market, collateral, evidence_root)


async def _clear(market: Market, collateral: str, evidence_root: str) -> None:
    """Takes the proposal with this root from the chain, if it is there."""
    state = await market.chain.vault(collateral)
    if state is None or state.slash is None or f"sha256:{state.slash.evidence_root.hex()}" != evidence_root:
        return
    clearing = program.cancel_slash(
        market.network.program_pubkey,
        collateral=state.address,
        config=market.network.operator_pubkey,
        admin=market.identity.pubkey(),
    )
    await _send(market, None, [clearing])


async def _send(market: Market, slash_id: str | None, instructions: list[Instruction]) -> None:
    """A refusal is noted and nothing else: what happened is told by the account."""
    blockhash, last_valid = await market.chain.latest_blockhash()
    transaction = sign_transaction(instructions, [market.identity], blockhash, last_valid)
    detail = ""
    if slash_id is not None:
        await _note_sent(market, slash_id, detail)  # before: an answer that gets lost must not make it twice as eager
    try:
        await market.chain.send(transaction.raw)
    except (TransactionRejected, TransactionExpired) as refused:
        detail = refused.message
        log.warning("slash %s: %s", slash_id, detail)
    if slash_id is not None and detail:
        await _note_sent(market, slash_id, detail)


async def _note_sent(market: Market, slash_id: str, detail: str) -> None:
    async with market.transaction() as unit:
        row = await unit.session.get_one(SlashRow, slash_id)
        row.sent_at_ms, row.detail = unit.now_ms, detail[:2_000]


async def _move(
    market: Market, slash_id: str, to: SlashState, detail: str = "", *, seen: VaultState | None = None
) -> bool:
    """`seen`: the collateral as it was when it showed this move."""
    async with market.transaction() as unit:
        row = await unit.session.get_one(SlashRow, slash_id)
        if to is SlashState.PROPOSED and seen is not None and seen.slash is not None:
            row.execute_at_s, row.amount = seen.slash.execute_at, seen.slash.amount
            row.roots_before = seen.roots.hex()
        await move_slash(unit.session, row, to, at_ms=unit.now_ms, detail=detail)
        if to is SlashState.EXECUTED and seen is not None:
            await unit.session.execute(
                update(CollateralRow)
                .where(CollateralRow.address == row.collateral, CollateralRow.counted > seen.balance)
                .values(counted=seen.balance)
                .execution_options(synchronize_session=False)
            )
        return True


def _is_ours(row: SlashRow, state: VaultState) -> bool:
    return state.slash is not None and state.slash.evidence_root == _root_of(row)


def _root_of(row: SlashRow) -> bytes:
    return bytes.fromhex(Digest(row.evidence_root).removeprefix("sha256:"))
