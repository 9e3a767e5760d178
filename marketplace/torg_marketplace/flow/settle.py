"""Settle: payouts that wait become one capture per vault, and a capture lands exactly once.

plan (a transaction) -> build and sign (chain, no transaction) -> store the bytes (a transaction) -> send -> learn its fate

The bytes and their signature are stored before they are sent. In doubt the same bytes go again; new ones are made only when the old
ones are provably dead. A crash between any two of these steps leaves a state from which the next pass goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from solders.pubkey import Pubkey
from solders.signature import Signature
from sqlalchemy import CursorResult, select, update

from torg_chain import vault_operations
from torg_chain.errors import TransactionExpired, TransactionRejected, TransactionTooLarge
from torg_chain.transactions import SignedTransaction
from torg_chain.vault import VaultState, token_account_of
from torg_marketplace.flow.earnings import FEE_ADDRESS
from torg_marketplace.flow.settlement_moves import apply_finalized, bury, move_settlement
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.settlement import Action, Batch, Due, Evidence, Fate, is_due, make_batch, next_action
from torg_marketplace.storage.money_models import CapRow, PayoutRow, SettlementRow, VaultRow
from torg_protocol.errors import Unavailable
from torg_protocol.ids import Digest
from torg_protocol.merkle import merkle_root
from torg_protocol.states import PayoutState, SettlementState
from torg_protocol.vault_messages import CapMessage

IN_FLIGHT = (SettlementState.BUILT, SettlementState.UNKNOWN, SettlementState.CONFIRMED)


@dataclass(frozen=True, slots=True)
class _Plan:
    vault: str
    batch: Batch
    root: Digest
    cap: CapMessage
    cap_signer: str
    cap_signature: str


async def settle_due(market: Market, *, hurry: bool = False) -> int:
    """Stores a capture for every vault whose payouts are due; `advance_settlements` sends them. Returns how many.

    `hurry`: do not wait for age or threshold. One vault's trouble does not hold up the others.
    """
    async with market.reading() as unit:
        query = select(PayoutRow.vault).where(PayoutRow.state == PayoutState.PENDING).distinct()
        vaults = (await unit.session.scalars(query)).all()
    built = 0
    for vault in vaults:
        async with market.reading() as unit:
            plan = await _plan(unit, vault, hurry=hurry)
        if plan is not None:
            built += await _build(market, plan)
    return built


async def advance_settlements(market: Market) -> int:
    """Moves every capture in flight one step. Returns how many moved. Raises ChainUnavailable; nothing is lost by that."""
    async with market.reading() as unit:
        query = select(SettlementRow.settlement_id).where(SettlementRow.state.in_(IN_FLIGHT))
        ids = (await unit.session.scalars(query.order_by(SettlementRow.created_at_ms))).all()
    return sum([await _advance(market, settlement_id) for settlement_id in ids])


async def _plan(unit: Unit, vault: str, *, hurry: bool) -> _Plan | None:
    row = await unit.session.get_one(VaultRow, vault)
    if row.blocked is not None or row.active_settlement is not None:
        return None
    query = select(PayoutRow).where(PayoutRow.vault == vault, PayoutRow.state == PayoutState.PENDING)
    payouts = {item.payout_id: item for item in await unit.session.scalars(query)}
    waiting = [Due(item.payout_id, item.payout_address, item.amount, item.created_at_ms) for item in payouts.values()]
    due = is_due(
        waiting,
        now_ms=unit.now_ms,
        max_age_ms=unit.policy.settlement_max_age_ms,
        threshold=unit.policy.settlement_threshold,
        hurry=hurry or row.close_at_s != 0,
    )
    cap = await _best_cap(unit, vault)
    if not due or cap is None:
        return None
    room = min(cap.cap - row.chain_settled, row.chain_balance)
    batch = make_batch(waiting, max_payees=unit.policy.max_payees, at_most=room)
    if batch.amount == 0:
        return None
    root = merkle_root([Digest(payouts[payout_id].record_digest) for payout_id in batch.payout_ids])
    message = CapMessage(unit.market.network.chain_id, bytes(Pubkey.from_string(vault)), cap.cap, cap.valid_until_s)
    return _Plan(vault, batch, root, message, cap.signer, cap.signature)


async def _best_cap(unit: Unit, vault: str) -> CapRow | None:
    """The highest cap that is valid for a while yet."""
    margin_ms = 60_000
    query = select(CapRow).where(CapRow.vault == vault, CapRow.valid_until_s * 1000 > unit.now_ms + margin_ms)
    return (await unit.session.scalars(query.order_by(CapRow.cap.desc(), CapRow.valid_until_s.desc()).limit(1))).first()


async def _build(market: Market, plan: _Plan) -> int:
    state = await market.chain.vault(plan.vault)
    if state is None:
        return 0
    wallets = await _wallets(market, plan.batch)
    transaction = await _sign(market, plan, state, wallets)
    async with market.transaction() as unit:
        settlement_id = unit.new_id("settle")
        claimed = await unit.session.execute(
            update(VaultRow)
            .where(VaultRow.address == plan.vault, VaultRow.active_settlement.is_(None), VaultRow.blocked.is_(None))
            .values(active_settlement=settlement_id)
            .execution_options(synchronize_session=False)
        )
        taken = await unit.session.execute(
            update(PayoutRow)
            .where(PayoutRow.payout_id.in_(plan.batch.payout_ids), PayoutRow.state == PayoutState.PENDING)
            .values(state=PayoutState.IN_FLIGHT, settlement_id=settlement_id)
            .execution_options(synchronize_session=False)
        )
        if _count(claimed) != 1 or _count(taken) != len(plan.batch.payout_ids):
            raise Unavailable(
                "another settlement of this vault was faster", code="settlement_raced", field="vault", value=plan.vault
            )
        unit.session.add(
            SettlementRow(
                settlement_id=settlement_id,
                vault=plan.vault,
                state=SettlementState.BUILT,
                expected_settled=state.settled,
                amount=plan.batch.amount,
                payees=[list(payee) for payee in plan.batch.payees],
                root=plan.root,
                raw=transaction.raw,
                signature=transaction.signature,
                last_valid_block_height=transaction.last_valid_block_height,
                created_at_ms=unit.now_ms,
            )
        )
        unit.wake("settle")
    return 1


async def _wallets(market: Market, batch: Batch) -> list[tuple[Pubkey, int]]:
    """The batch's payees as wallets, in its order; the fee goes to whom the operator's config on chain names. A wallet may
    appear twice (the operator may own a node): the program pays both."""
    config = await market.chain.operator_config(market.network.operator_pubkey)
    if config is None:
        raise Unavailable(
            "the operator's config is not on chain", code="operator_config_missing", field="operator_config"
        )
    return [
        (config.fee_owner if address == FEE_ADDRESS else Pubkey.from_string(address), amount)
        for address, amount in batch.payees
    ]


async def _sign(market: Market, plan: _Plan, state: VaultState, wallets: list[tuple[Pubkey, int]]) -> SignedTransaction:
    accounts = [token_account_of(wallet, market.network.mint_pubkey) for wallet, _ in wallets]
    exist = await market.chain.accounts_exist(accounts)
    blockhash, last_valid = await market.chain.latest_blockhash()
    try:
        return vault_operations.build_capture(
            market.network,
            state,
            payees=wallets,
            cap=plan.cap,
            cap_signer=Pubkey.from_string(plan.cap_signer),
            cap_signature=Signature.from_string(plan.cap_signature),
            root=bytes.fromhex(plan.root.removeprefix("sha256:")),
            capture_key=market.capture_key,
            fee_payer=market.capture_key,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            create_accounts_of=[wallet for (wallet, _), there in zip(wallets, exist, strict=True) if not there],
        )
    except TransactionTooLarge as error:
        raise Unavailable(
            "too many new payees for one transaction",
            code="settlement_too_large",
            field="vault",
            value=plan.vault,
            hint="lower max_payees",
        ) from error


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
                await apply_finalized(unit, settlement_id, await _skipped_addresses(unit, settlement_id, skipped))
        case Action.CONFIRM:
            async with market.transaction() as unit:
                await move_settlement(unit, settlement_id, SettlementState.CONFIRMED)
        case Action.ROLL_BACK:
            async with market.transaction() as unit:
                await move_settlement(unit, settlement_id, SettlementState.UNKNOWN, detail="a fork dropped it")
        case Action.BURY:
            async with market.transaction() as unit:
                await bury(unit, settlement_id, "it never landed, and its blockhash is dead")
        case Action.ALARM:
            async with market.transaction() as unit:
                row = await unit.session.get_one(SettlementRow, settlement_id)
                vault_row = await unit.session.get_one(VaultRow, row.vault)
                vault_row.blocked = f"settled on chain is {evidence.settled}, expected {expected}, and {signature} is not found: look before anything is paid"
    return True


async def _evidence(market: Market, vault: str, signature: str, last_valid: int) -> Evidence:
    """The order matters: a status that is read before the height could miss what lands in between."""
    expired = await market.chain.block_height() > last_valid
    state = await market.chain.vault(vault)
    status = await market.chain.signature_status(signature)
    return Evidence(Fate(status.status.value), expired, state.settled if state else -1)


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


async def _skipped_addresses(unit: Unit, settlement_id: str, skipped: frozenset[int]) -> frozenset[str]:
    """Payout addresses (FEE_ADDRESS included) behind the skipped accounts of the transaction."""
    row = await unit.session.get_one(SettlementRow, settlement_id)
    return frozenset(address for index, (address, _) in enumerate(row.payees) if index in skipped)


def _count(result: object) -> int:
    return result.rowcount if isinstance(result, CursorResult) else -1
