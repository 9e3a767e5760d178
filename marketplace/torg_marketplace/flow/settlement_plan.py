"""From payouts that wait to one stored, signed order: what a vault's next capture pays, and the bytes that carry it.

plan (a read) -> ask the chain, sign (no transaction) -> store (a transaction). Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from solders.pubkey import Pubkey
from solders.signature import Signature
from sqlalchemy import CursorResult, func, select, update

from torg_chain import vault_operations
from torg_chain.errors import TransactionTooLarge
from torg_chain.transactions import SignedTransaction
from torg_chain.vault import VaultState, token_account_of
from torg_chain.vault_operations import PriorityFee
from torg_marketplace.flow.caps import signed_cap
from torg_marketplace.flow.earnings import FEE_ADDRESS
from torg_marketplace.flow.landed import catch_up
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.vaults import signer_of
from torg_marketplace.rules.settlement import Batch, Due, capture_units, is_due, is_exposed, make_batch, priority_price
from torg_marketplace.storage.among import among
from torg_marketplace.storage.models import LeaseRow, NodeRow
from torg_marketplace.storage.money_models import CapRow, PayoutRow, SettlementRow, VaultRow
from torg_protocol.caps import OrderPayee, SignedCap, SignedOrder
from torg_protocol.errors import Unavailable
from torg_protocol.ids import Digest, NodeId
from torg_protocol.merkle import merkle_root
from torg_protocol.messages import OrderIssued
from torg_protocol.states import PayoutState, SettlementState
from torg_protocol.vault_messages import CapMessage, sign_message

_CAP_MARGIN_MS = 60_000
IN_FLIGHT = (SettlementState.BUILT, SettlementState.UNKNOWN, SettlementState.CONFIRMED)


@dataclass(frozen=True, slots=True)
class Plan:
    """`attempts`: captures of the same range that died; each raises the priority fee."""

    vault: str
    settled: int
    batch: Batch
    root: Digest
    cap: SignedCap
    nodes: frozenset[NodeId]
    attempts: int


@dataclass(frozen=True, slots=True)
class _Signed:
    plan: Plan
    accounts: tuple[Pubkey, ...]
    transaction: SignedTransaction


async def due_vaults(unit: Unit, *, hurry: bool) -> list[str]:
    """Those with payouts that are due now and no capture in flight. Asked often, and mostly in vain: about all of them at once, by sums."""
    rows = (await unit.session.execute(_WAITING)).all()
    limits = {
        row[0]: int(row[1]["max_unpaid"]) for row in await unit.session.execute(_OFFERS, {"leases": _newest(rows)})
    }
    found = []
    for (vault, close_at_s), of_vault in groupby(rows, key=lambda row: (row.vault, row.close_at_s)):
        waiting = list(of_vault)
        sums = [Due("", row.payout_address, int(row.amount), int(row.since_ms)) for row in waiting]
        most = {
            row.payout_address: limits[row.lease_id]
            for row in waiting
            if row.lease_id in limits and row.payout_address != FEE_ADDRESS
        }
        if is_due(
            sums,
            now_ms=unit.now_ms,
            max_age_ms=unit.policy.settlement_max_age_ms,
            threshold=unit.policy.settlement_threshold,
            hurry=hurry or close_at_s != 0 or is_exposed(sums, most),
        ):
            found.append(vault)
    return found


_WAITING = (  # one sum for each address, and of the leases that it is for the newest
    select(
        PayoutRow.vault,
        VaultRow.close_at_s,
        PayoutRow.payout_address,
        func.sum(PayoutRow.amount).label("amount"),
        func.min(PayoutRow.created_at_ms).label("since_ms"),
        func.max(PayoutRow.lease_id).label("lease_id"),
    )
    .join(VaultRow, VaultRow.address == PayoutRow.vault)
    .where(PayoutRow.state == PayoutState.PENDING, VaultRow.blocked.is_(None), VaultRow.active_settlement.is_(None))
    .group_by(PayoutRow.vault, VaultRow.close_at_s, PayoutRow.payout_address)
    .order_by(PayoutRow.vault)
)
_OFFERS = (  # say how much their node wants to be owed at most
    select(LeaseRow.lease_id, NodeRow.offer)
    .join(NodeRow, NodeRow.node_id == LeaseRow.node_id)
    .where(among(LeaseRow.lease_id, "leases"))
)


def _newest(waiting: Sequence[Any]) -> list[str]:
    return [row.lease_id for row in waiting if row.payout_address != FEE_ADDRESS]


async def make_plan(unit: Unit, vault: str, *, max_payees: int | None = None) -> Plan | None:
    """Of what waits. None: nothing can be paid, or the vault is blocked or has a capture in flight."""
    row = await unit.session.get_one(VaultRow, vault)
    if row.blocked is not None or row.active_settlement is not None:
        return None
    cap = await _best_cap(unit, row)
    if cap is None:
        return None
    query = select(PayoutRow).where(PayoutRow.vault == vault, PayoutRow.state == PayoutState.PENDING)
    payouts = {item.payout_id: item for item in await unit.session.scalars(query)}
    waiting = [Due(item.payout_id, item.payout_address, item.amount, item.created_at_ms) for item in payouts.values()]
    room = min(cap.cap - row.chain_settled, row.chain_balance)
    batch = make_batch(waiting, max_payees=max_payees or unit.policy.max_payees, at_most=room)
    if batch.amount == 0:
        return None
    chosen = [payouts[payout_id] for payout_id in batch.payout_ids]
    leases = {item.lease_id for item in chosen}
    nodes = await unit.session.scalars(select(LeaseRow.node_id).where(LeaseRow.lease_id.in_(leases)).distinct())
    return Plan(
        vault=vault,
        settled=row.chain_settled,
        batch=batch,
        root=merkle_root([Digest(item.record_digest) for item in chosen]),
        cap=cap,
        nodes=frozenset(map(NodeId, nodes)),
        attempts=await _died_before(unit, vault, row.chain_settled),
    )


async def build(market: Market, plan: Plan) -> int:
    """Signs and stores the plan's capture; gives the order to the nodes that it pays, who may land it themselves.

    1 when stored. 0 when the chain shows that the books are behind: they are brought up to date, and the next pass plans anew. Raises
    ChainUnavailable; Unavailable settlement_raced, settlement_too_large, operator_config_missing.
    """
    state = await market.chain.vault(plan.vault)
    if state is None:
        return 0
    if state.settled != plan.settled:
        await catch_up(market, plan.vault)
        return 0
    signed = await _sign_what_fits(market, plan, state)
    async with market.transaction() as unit:
        await _store(unit, signed)
        order = _order(market, signed)
        for node in sorted(signed.plan.nodes):
            unit.send(node, OrderIssued(order=order))
    return 1


async def orders_in_flight(unit: Unit, node_id: NodeId) -> list[SignedOrder]:
    """Orders that pay this node and are not final yet: for a node that was away when they were issued."""
    query = (
        select(SettlementRow)
        .join(PayoutRow, PayoutRow.settlement_id == SettlementRow.settlement_id)
        .join(LeaseRow, LeaseRow.lease_id == PayoutRow.lease_id)
        .where(LeaseRow.node_id == node_id, SettlementRow.state.in_(IN_FLIGHT))
        .distinct()
    )
    ids = (await unit.session.scalars(query.with_only_columns(SettlementRow.settlement_id))).all()
    found = []
    for settlement_id in ids:
        row = await unit.session.get_one(SettlementRow, settlement_id)
        if (cap := await _best_cap(unit, await unit.session.get_one(VaultRow, row.vault))) is not None:
            payees = [(account, amount) for account, (_, amount) in zip(row.token_accounts, row.payees, strict=True)]
            found.append(signed_order(unit.market, cap, row.expected_settled, payees, Digest(row.root)))
    return found


async def _best_cap(unit: Unit, vault: VaultRow) -> SignedCap | None:
    """The highest cap that the program takes now and for a while yet."""
    until_ms = unit.now_ms + _CAP_MARGIN_MS
    query = select(CapRow).where(
        CapRow.vault == vault.address,
        CapRow.signer == signer_of(vault, until_ms),
        CapRow.valid_until_s * 1000 > until_ms,
    )
    best = query.order_by(CapRow.cap.desc(), CapRow.valid_until_s.desc()).limit(1)
    row = (await unit.session.scalars(best)).first()
    return None if row is None else signed_cap(row)


async def _died_before(unit: Unit, vault: str, settled: int) -> int:
    query = select(func.count()).where(
        SettlementRow.vault == vault,
        SettlementRow.expected_settled == settled,
        SettlementRow.state == SettlementState.DEAD,
    )
    return int(await unit.session.scalar(query) or 0)


async def _sign_what_fits(market: Market, plan: Plan, state: VaultState) -> _Signed:
    """Token accounts that must be made take room: a batch that does not fit is made with fewer payees."""
    size = len(plan.batch.payees)
    while True:
        try:
            return await _sign(market, plan, state)
        except TransactionTooLarge as error:
            size -= 1
            async with market.reading() as unit:
                smaller = await make_plan(unit, plan.vault, max_payees=size) if size else None
            if smaller is None:
                raise Unavailable(
                    "not even one payee fits into a transaction",
                    code="settlement_too_large",
                    field="vault",
                    value=plan.vault,
                ) from error
            plan = smaller


async def _sign(market: Market, plan: Plan, state: VaultState) -> _Signed:
    wallets = await _wallets(market, plan.batch)
    accounts = [token_account_of(wallet, market.network.mint_pubkey) for wallet, _ in wallets]
    exist = await market.chain.accounts_exist(accounts)
    missing = [wallet for (wallet, _), there in zip(wallets, exist, strict=True) if not there]
    fee = await _priority_fee(market, plan, state, payees=len(accounts), new_accounts=len(missing))
    blockhash, last_valid = await market.chain.latest_blockhash()
    transaction = vault_operations.build_capture(
        market.network,
        state,
        payees=wallets,
        cap=_cap_message(market, plan.cap),
        cap_signer=Pubkey.from_string(plan.cap.signer),
        cap_signature=Signature.from_string(plan.cap.signature),
        root=_root_bytes(plan.root),
        capture_key=market.capture_key,
        fee_payer=market.capture_key,
        blockhash=blockhash,
        last_valid_block_height=last_valid,
        create_accounts_of=missing,
        priority_fee=fee,
    )
    return _Signed(plan, tuple(accounts), transaction)


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


async def _priority_fee(
    market: Market, plan: Plan, state: VaultState, *, payees: int, new_accounts: int
) -> PriorityFee | None:
    """None where the cluster is not busy and nothing of this range has died yet: then two instructions less are sent."""
    recent = await market.chain.priority_fee([state.address, state.token_account])
    units = capture_units(payees, new_accounts)
    ceiling = market.policy.priority_fee_ceiling_lamports
    price = priority_price(recent, attempts=plan.attempts, units=units, ceiling_lamports=ceiling)
    return PriorityFee(units, price) if price else None


async def _store(unit: Unit, signed: _Signed) -> None:
    """Claims vault and payouts, or raises and changes nothing."""
    plan, settlement_id = signed.plan, unit.new_id("settle")
    claimed = await unit.session.execute(
        update(VaultRow)
        .where(
            VaultRow.address == plan.vault,
            VaultRow.active_settlement.is_(None),
            VaultRow.blocked.is_(None),
            VaultRow.chain_settled == plan.settled,
        )
        .values(active_settlement=settlement_id)
        .execution_options(synchronize_session=False)
    )
    taken = await unit.session.execute(
        update(PayoutRow)
        .where(PayoutRow.payout_id.in_(plan.batch.payout_ids), PayoutRow.state == PayoutState.PENDING)
        .values(state=PayoutState.IN_FLIGHT, settlement_id=settlement_id)
        .execution_options(synchronize_session=False)
    )
    worth = await unit.session.scalar(
        select(func.sum(PayoutRow.amount)).where(PayoutRow.payout_id.in_(plan.batch.payout_ids))
    )
    if _count(claimed) != 1 or _count(taken) != len(plan.batch.payout_ids) or worth != plan.batch.amount:
        raise Unavailable(
            "another settlement of this vault was faster", code="settlement_raced", field="vault", value=plan.vault
        )
    unit.session.add(
        SettlementRow(
            settlement_id=settlement_id,
            vault=plan.vault,
            state=SettlementState.BUILT,
            expected_settled=plan.settled,
            amount=plan.batch.amount,
            payees=[list(payee) for payee in plan.batch.payees],
            token_accounts=[str(account) for account in signed.accounts],
            payout_ids=list(plan.batch.payout_ids),
            root=plan.root,
            raw=signed.transaction.raw,
            signature=signed.transaction.signature,
            last_valid_block_height=signed.transaction.last_valid_block_height,
            created_at_ms=unit.now_ms,
        )
    )


def _order(market: Market, signed: _Signed) -> SignedOrder:
    plan = signed.plan
    payees = [(str(account), amount) for account, (_, amount) in zip(signed.accounts, plan.batch.payees, strict=True)]
    return signed_order(market, plan.cap, plan.settled, payees, plan.root)


def signed_order(
    market: Market, cap: SignedCap, expected_settled: int, payees: Sequence[tuple[str, int]], root: Digest
) -> SignedOrder:
    """Payments to token accounts as an order that anybody may submit, with the cap that covers it."""
    order = SignedOrder(
        vault=cap.vault,
        expected_settled=expected_settled,
        payees=tuple(OrderPayee(token_account=account, amount=amount) for account, amount in payees),
        root=root,
        cap=cap,
        signer=str(market.capture_key.pubkey()),
        signature="",
    )
    signature = sign_message(market.capture_key, order.message(market.network.chain_id))
    return order.model_copy(update={"signature": str(signature)})


def _cap_message(market: Market, cap: SignedCap) -> CapMessage:
    return CapMessage(market.network.chain_id, bytes(Pubkey.from_string(cap.vault)), cap.cap, cap.valid_until_s)


def _root_bytes(root: Digest) -> bytes:
    return bytes.fromhex(root.removeprefix("sha256:"))


def _count(result: object) -> int:
    return result.rowcount if isinstance(result, CursorResult) else -1
