"""Vaults: what the chain says of them, what of them is committed, and to whom.

A job is admitted here or not at all: nothing else may raise what is committed. Writers take turns (`storage/engine.py`), so that the row that is
decided on still is as it was read when it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from solders.pubkey import Pubkey
from sqlalchemy import BigInteger, bindparam, func, select, update

from torg_chain.vault import VaultState
from torg_marketplace.flow.caps import remember_cap
from torg_marketplace.flow.credit import close_credit
from torg_marketplace.flow.cursors import id_in
from torg_marketplace.flow.landed import catch_up
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.money import Refusal, VaultFacts, refusal
from torg_marketplace.storage import ledger
from torg_marketplace.storage.account_models import CreditHoldRow
from torg_marketplace.storage.among import among
from torg_marketplace.storage.money_models import CapRow, HoldRow, PayoutRow, SettlementRow, VaultRow
from torg_protocol.api import PayoutView, SettlementPage, SettlementView, VaultView
from torg_protocol.caps import CapStatement, SignedCap
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound
from torg_protocol.ids import AccountId, JobId, LeaseId, VaultAddress
from torg_protocol.states import OVER_PAYOUT_STATES
from torg_protocol.vault_messages import CapMessage, verify_message

log = logging.getLogger(__name__)


async def refresh_vault(market: Market, address: str) -> VaultView:
    """Reads the chain (finalized), then brings the row and the ledger up to date. Safe to repeat.

    Raises NotFound vault_unknown, Invalid (vault_wrong_operator, vault_wrong_mint, vault_wrong_chain, vault_kind,
    vault_grace_too_short), ChainUnavailable (also ChainBehind: answers from before what is known are none).
    """
    try:
        Pubkey.from_string(address)
    except ValueError:
        raise Invalid("not an address", code="vault_address_invalid", field="vault", value=address) from None
    async with market.reading() as unit:
        known = await unit.session.get(VaultRow, address)
    state = await market.chain.vault(address, min_slot=known.chain_slot if known is not None else 0)
    if known is not None and _may_be_behind(known, state):
        await catch_up(market, address)
    async with market.transaction() as unit:
        if state is None:
            if known is None:  # or known only since we asked: then it was opened meanwhile, not closed
                raise NotFound(
                    "there is no such vault on this chain",
                    code="vault_unknown",
                    field="vault",
                    value=address,
                    hint="wait until its opening is finalized",
                )
            row = await unit.session.get_one(VaultRow, address)
            if (
                row.chain_slot == known.chain_slot
            ):  # else somebody has seen more meanwhile, and this answer may be from before it
                await _closed(unit, row)
        else:
            _check_terms(market, state)
            row = await _upsert(unit, state)
        return await _view(unit, row)


async def vault_view(unit: Unit, account: AccountId, address: str) -> VaultView:
    row = await vault_row(unit, address)
    if row.depositor != account:
        raise NotFound("no such vault of yours", code="vault_unknown", field="vault", value=address)
    return await _view(unit, row)


async def settlement_page(
    unit: Unit, account: AccountId, address: str, *, cursor: str | None = None, limit: int = 50
) -> SettlementPage:
    """Oldest first. The cursor is the last settlement id of the page before (ids sort by creation)."""
    await vault_view(unit, account, address)
    query = select(SettlementRow).where(SettlementRow.vault == address).order_by(SettlementRow.settlement_id)
    if cursor is not None:
        query = query.where(SettlementRow.settlement_id > id_in(cursor, "settle"))
    rows = (await unit.session.scalars(query.limit(limit + 1))).all()
    views = []
    for row in rows[:limit]:
        payouts = await unit.session.scalars(select(PayoutRow).where(PayoutRow.settlement_id == row.settlement_id))
        views.append(
            SettlementView(
                settlement_id=row.settlement_id,
                vault=VaultAddress(row.vault),
                state=row.state,
                amount=row.amount,
                signature=row.signature,
                expected_settled=row.expected_settled,
                payouts=tuple(_payout_view(item, row.signature) for item in payouts),
            )
        )
    return SettlementPage(settlements=tuple(views), next_cursor=views[-1].settlement_id if len(rows) > limit else None)


async def admit(
    unit: Unit, *, job_id: JobId, account: AccountId, cap: SignedCap, max_amount: int, lease_end_latest_s: int
) -> None:
    """Commits at most `max_amount` of the cap's vault to a job, or raises and changes nothing.

    Raises NotFound vault_unknown; Forbidden vault_not_yours; Invalid cap_signature_invalid; Conflict cap_expires_too_soon,
    cap_stale (with a signed CapStatement), vault_underfunded, vault_closing, vault_blocked.
    """
    await _commit(unit, account, cap, max_amount, lease_end_latest_s)
    unit.session.write(HoldRow, job_id=job_id, vault=cap.vault, max_amount=max_amount, billed=0, refunded=0, open=True)
    if max_amount:
        entries = ledger.move(ledger.free(cap.vault), ledger.held(job_id), max_amount)
        unit.post(key=f"hold:{job_id}", cause=f"job {job_id} admitted", entries=entries)


async def admit_more(
    unit: Unit, *, job_id: JobId, account: AccountId, cap: SignedCap, more: int, lease_end_latest_s: int
) -> None:
    """Commits so much more to a job that is open. Raises what `admit` raises, and changes nothing then."""
    await _commit(unit, account, cap, more, lease_end_latest_s)
    hold = await unit.session.get_one(HoldRow, job_id)
    before, hold.max_amount = hold.max_amount, hold.max_amount + more
    await unit.session.flush()
    if more:
        entries = ledger.move(ledger.free(cap.vault), ledger.held(job_id), more)
        key = f"hold:{job_id}:{before}:{hold.max_amount}"
        await ledger.post(unit.session, key=key, cause=f"job {job_id} extended", entries=entries, at_ms=unit.now_ms)


async def is_on_credit(unit: Unit, job_id: JobId) -> bool:
    """Whether an API key's credit pays for it."""
    return await unit.session.get(CreditHoldRow, job_id) is not None


async def _commit(unit: Unit, account: AccountId, cap: SignedCap, max_amount: int, lease_end_latest_s: int) -> None:
    row = await vault_row(unit, cap.vault)
    if row.depositor != account:
        raise Forbidden("this vault is somebody else's", code="vault_not_yours", field="cap.vault", value=cap.vault)
    _check_cap(unit, row, cap, lease_end_latest_s)
    if (why := refusal(_facts(row), cap.cap, max_amount)) is not None:
        raise _refused(unit, row, cap, max_amount, why)
    row.open_maximum += max_amount
    remember_cap(unit, cap)


async def close_job(unit: Unit, *, job_id: JobId) -> None:
    """What the job did not cost goes back to the client's free money. Safe to repeat."""
    hold = await unit.session.get_one(HoldRow, job_id)
    if not hold.open:
        return
    hold.open = False
    cost = hold.billed - hold.refunded
    unit.later(_CLOSE, {"vault": hold.vault, "held": hold.max_amount, "cost": cost})
    await close_credit(unit, hold)
    rest = hold.max_amount - hold.billed + hold.refunded
    if rest:
        entries = ledger.move(ledger.held(job_id), ledger.free(hold.vault), rest)
        unit.post(key=f"release:{job_id}", cause=f"job {job_id} ended", entries=entries)


_CLOSE = (
    update(VaultRow)
    .where(VaultRow.address == bindparam("vault"))
    .values(
        open_maximum=VaultRow.open_maximum - bindparam("held", type_=BigInteger),
        final_total=VaultRow.final_total + bindparam("cost", type_=BigInteger),
    )
)


def _may_be_behind(row: VaultRow, state: VaultState | None) -> bool:
    """A payee has landed an order of ours, perhaps. While a capture is in flight the settlement worker follows it."""
    at_rest = not row.closed and row.active_settlement is None
    return at_rest and (state is None or state.settled != row.chain_settled)


def _check_terms(market: Market, state: VaultState) -> None:
    network, policy = market.network, market.policy
    wrong = [
        ("vault_wrong_operator", "config", str(state.config), network.operator_config),
        ("vault_wrong_mint", "mint", str(state.mint), network.mint),
        ("vault_wrong_chain", "chain_id", state.chain_id.hex(), network.chain_id.hex()),
        ("vault_kind", "kind", state.kind, 0),
    ]
    for code, field, actual, wanted in wrong:
        if actual != wanted:
            raise Invalid(
                f"this vault's {field} is not ours",
                code=code,
                field=field,
                value=actual,
                hint=f"open one with {wanted}",
            )
    if state.grace_s < policy.min_vault_grace_s:
        raise Invalid(
            "this vault's grace is too short for work to be verified and settled in it",
            code="vault_grace_too_short",
            field="grace_s",
            value=state.grace_s,
            hint=f"at least {policy.min_vault_grace_s}",
        )


async def _upsert(unit: Unit, state: VaultState) -> VaultRow:
    address = str(state.address)
    row = await unit.session.get(VaultRow, address, with_for_update=True)
    values = {
        "depositor": str(state.depositor),
        "signer": str(state.signer),
        "next_signer": str(state.next_signer),
        "next_signer_at_s": state.next_signer_at,
        "token_account": str(state.token_account),
        "grace_s": state.grace_s,
        "close_at_s": state.close_at,
        "seen_at_ms": unit.now_ms,
    }
    if row is None:
        row = VaultRow(address=address, chain_balance=state.balance, chain_settled=state.settled, deposits=0, **values)
        unit.session.add(row)
        await unit.session.flush()
    if state.slot < row.chain_slot:
        return row  # somebody else has seen more since we asked
    row.chain_slot = state.slot
    total = state.settled + state.balance  # all that was ever deposited: like what is settled, it never becomes less
    if state.settled < row.chain_settled or total < row.deposits:
        return row  # which cannot be: `reconcile` says so, and stops its payouts
    for name, value in values.items():
        setattr(row, name, value)
    if state.settled == row.chain_settled:
        # What was captured moves both figures together with the ledger, when it is final: here only deposits are booked.
        row.chain_balance = state.balance
        await _post_deposits(unit, row, total)
    return row


async def _post_deposits(unit: Unit, row: VaultRow, total: int) -> None:
    change = total - row.deposits
    if change == 0:
        return
    entries = ledger.move(ledger.chain(row.address), ledger.free(row.address), change)
    key = f"deposit:{row.address}:{row.deposits}:{total}"
    await ledger.post(
        unit.session, key=key, cause="deposits seen on chain (finalized)", entries=entries, at_ms=unit.now_ms
    )
    row.deposits = total


async def _closed(unit: Unit, row: VaultRow) -> None:
    """The depositor has taken the rest: what was free has left the chain. What was owed is written off (flow/write_off.py)."""
    if row.closed:
        return
    left = await ledger.balance(unit.session, ledger.free(row.address))
    if left:
        entries = ledger.move(ledger.free(row.address), ledger.chain(row.address), left)
        await ledger.post(
            unit.session, key=f"closed:{row.address}", cause="vault closed", entries=entries, at_ms=unit.now_ms
        )
    row.closed, row.chain_balance, row.deposits = True, 0, row.deposits - left


def _check_cap(unit: Unit, row: VaultRow, cap: SignedCap, lease_end_latest_s: int) -> None:
    signer = signer_of(row, unit.now_ms)
    vault = bytes(Pubkey.from_string(cap.vault))
    message = CapMessage(unit.market.network.chain_id, vault, cap.cap, cap.valid_until_s)
    if cap.signer != signer or not verify_message(message, cap.signature, signer):
        raise Invalid(
            "the cap is not signed by the vault's signer",
            code="cap_signature_invalid",
            field="cap.signature",
            value=cap.signer,
            hint=f"the vault names {signer}",
        )
    policy = unit.policy
    needed_s = lease_end_latest_s + policy.verification_window_s + policy.settlement_max_age_ms // 1000
    if cap.valid_until_s < needed_s:
        raise Conflict(
            "the cap may expire before this job is settled",
            code="cap_expires_too_soon",
            field="cap.valid_until_s",
            value=cap.valid_until_s,
            hint=f"at least {needed_s}",
        )


def signer_of(row: VaultRow, now_ms: int) -> str:
    """Whose caps the program takes at that time."""
    rotated = row.next_signer_at_s and now_ms >= row.next_signer_at_s * 1000
    return row.next_signer if rotated else row.signer


def _facts(row: VaultRow) -> VaultFacts:
    return VaultFacts(
        settled=row.chain_settled,
        balance=row.chain_balance,
        final_total=row.final_total,
        open_maximum=row.open_maximum,
        closing=row.close_at_s != 0 or row.closed,
        blocked=row.blocked is not None,
    )


def _refused(unit: Unit, row: VaultRow, cap: SignedCap, max_amount: int, why: Refusal) -> Conflict:
    facts = _facts(row)
    needed = facts.committed + max_amount
    match why:
        case Refusal.BLOCKED:
            return Conflict(
                "payouts of this vault are stopped",
                code="vault_blocked",
                field="vault",
                value=row.address,
                hint=row.blocked,
            )
        case Refusal.CLOSING:
            return Conflict(
                "this vault is being closed",
                code="vault_closing",
                field="vault",
                value=row.address,
                hint="open another one",
            )
        case Refusal.UNDERFUNDED:
            missing = needed - facts.deposited
            return Conflict(
                "the vault does not hold enough for this job",
                code="vault_underfunded",
                field="vault",
                value=row.address,
                hint=f"deposit at least {unit.tokens(missing)} more",
                missing=missing,
            )
        case Refusal.CAP_STALE:
            statement = CapStatement(
                vault=VaultAddress(row.address),
                at_ms=unit.now_ms,
                final_total=row.final_total,
                open_maximum=row.open_maximum,
                newest_cap=cap.cap,
                needed_cap=needed,
                chain_settled=row.chain_settled,
                chain_balance=row.chain_balance,
            )
            return Conflict(
                "the cap does not cover this job",
                code="cap_stale",
                field="cap.cap",
                value=cap.cap,
                hint=f"sign a cap of at least {needed}",
                statement=statement.wire(),
                statement_signature=statement.sign(unit.market.identity),
            )


async def vault_row(unit: Unit, address: str) -> VaultRow:
    row = await unit.session.get(VaultRow, address)
    if row is None:
        raise NotFound(
            "this marketplace has not seen that vault",
            code="vault_unknown",
            field="vault",
            value=address,
            hint="PUT /v1/vaults/ADDRESS first",
        )
    return row


async def read_vaults(unit: Unit, addresses: Collection[str]) -> None:
    with unit.session.no_autoflush:
        (await unit.session.scalars(_VAULTS, {"addresses": list(addresses)})).all()


_VAULTS = select(VaultRow).where(among(VaultRow.address, "addresses"))


async def _view(unit: Unit, row: VaultRow) -> VaultView:
    newest = (
        await unit.session.execute(
            select(CapRow).where(CapRow.vault == row.address).order_by(CapRow.cap.desc()).limit(1)
        )
    ).scalar()
    unsettled = await unit.session.scalar(
        select(func.coalesce(func.sum(PayoutRow.amount), 0)).where(
            PayoutRow.vault == row.address, PayoutRow.state.not_in(OVER_PAYOUT_STATES)
        )
    )
    return VaultView(
        vault=VaultAddress(row.address),
        depositor=AccountId(row.depositor),
        signer=row.signer,
        chain_balance=row.chain_balance,
        chain_settled=row.chain_settled,
        close_at_s=row.close_at_s,
        grace_s=row.grace_s,
        newest_cap=newest.cap if newest else 0,
        newest_cap_valid_until_s=newest.valid_until_s if newest else 0,
        final_total=row.final_total,
        open_maximum=row.open_maximum,
        unsettled=int(unsettled or 0),
    )


def _payout_view(row: PayoutRow, signature: str) -> PayoutView:
    return PayoutView(
        payout_id=row.payout_id,
        lease_id=LeaseId(row.lease_id),
        payout_address=row.payout_address,
        amount=row.amount,
        state=row.state,
        settlement_signature=signature,
    )
