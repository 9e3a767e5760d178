"""Credit: jobs of API keys are paid by the operator's own vault, within what it has credited the account and the key's cap.

The one rail on which the marketplace holds money: it signs the caps itself. Everything after that (hold, lease, receipt, capture) is
what every other job goes through.
"""

from __future__ import annotations

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from sqlalchemy import CursorResult, Update, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from torg_marketplace.flow.caps import remembered_caps
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.account_models import ApiKeyRow, CreditHoldRow, CreditRow, CreditVaultRow
from torg_marketplace.storage.money_models import CapRow, HoldRow, RefundRow, VaultRow
from torg_protocol.accounts import CreditView
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Invalid, Unavailable
from torg_protocol.ids import AccountId, JobId, VaultAddress
from torg_protocol.vault_messages import CapMessage, sign_message

_CAP_MARGIN_S = 3_600


async def grant_credit(unit: Unit, account: AccountId, amount: int) -> CreditView:
    """Adds to what the account may spend; a negative amount takes back what is neither spent nor held.

    Raises Invalid `credit_amount_invalid`.
    """
    row = await unit.session.get(CreditRow, account, with_for_update=True)
    if row is None:
        row = CreditRow(account=account, granted=0, spent=0, held=0)
        unit.session.add(row)
    if row.granted + amount < row.spent + row.held:
        raise Invalid(
            "more than the account has left",
            code="credit_amount_invalid",
            field="amount",
            value=unit.tokens(-amount),
            hint=f"at most {unit.tokens(row.granted - row.spent - row.held)} can be taken back",
        )
    row.granted += amount
    await unit.session.flush()
    return _view(row)


async def credit_view(unit: Unit, account: AccountId) -> CreditView:
    row = await unit.session.get(CreditRow, account)
    return _view(row or CreditRow(account=account, granted=0, spent=0, held=0))


async def credit_vault(session: AsyncSession) -> VaultAddress:
    """The vault that pays for credit now. Raises Unavailable `credit_closed`."""
    address = await session.scalar(
        select(CreditVaultRow.address).order_by(CreditVaultRow.opened_at_ms.desc(), CreditVaultRow.address).limit(1)
    )
    if address is None:
        raise Unavailable(
            "this marketplace gives no credit",
            code="credit_closed",
            hint="submit with a wallet and a vault of your own",
        )
    return VaultAddress(address)


async def sign_credit_cap(
    unit: Unit, max_amount: int, lease_end_latest_s: int, *, of_vault: VaultAddress | None = None
) -> SignedCap:
    """A cap over everything that is committed of the credit vault (default: of the one that pays now), and so much more. Locks the vault's row."""
    address = of_vault or await credit_vault(unit.session)
    vault, policy = await unit.session.get(VaultRow, address, with_for_update=True), unit.policy
    key = unit.market.credit_key
    if vault is None or key is None:
        raise Unavailable("the credit vault is not there yet", code="credit_closed", hint="try again in a minute")
    cap = vault.final_total + vault.open_maximum + max_amount
    valid_until_s = (
        lease_end_latest_s + policy.verification_window_s + policy.settlement_max_age_ms // 1000 + _CAP_MARGIN_S
    )
    return _signed(unit, key, address, cap, valid_until_s)


async def raised_credit_cap(unit: Unit, vault: VaultRow, at_least: int) -> SignedCap | None:
    """A cap of at least this, that lives as long as the newest: for a range that lies higher than what is committed, because ranges that are
    not settled yet leave gaps below it that are too small. None for a client's vault: only its owner raises a cap there."""
    key = unit.market.credit_key
    if (
        key is None
        or str(key.pubkey()) != vault.signer
        or await unit.session.get(CreditVaultRow, vault.address) is None
    ):
        return None
    stored = await unit.session.scalar(select(func.max(CapRow.valid_until_s)).where(CapRow.vault == vault.address))
    newest = max([stored or 0, *(cap.valid_until_s for cap in remembered_caps(unit, vault.address))])
    if newest * 1000 <= unit.now_ms:
        return None
    return _signed(unit, key, VaultAddress(vault.address), at_least, newest)


def _signed(unit: Unit, key: Keypair, vault: VaultAddress, cap: int, valid_until_s: int) -> SignedCap:
    message = CapMessage(unit.market.network.chain_id, bytes(Pubkey.from_string(vault)), cap, valid_until_s)
    return SignedCap(
        vault=vault,
        cap=cap,
        valid_until_s=valid_until_s,
        signer=str(key.pubkey()),
        signature=str(sign_message(key, message)),
    )


async def hold_credit(unit: Unit, job_id: JobId, account: AccountId, key_id: str, max_amount: int) -> None:
    """The job's maximum counts from now on. Raises Conflict `spend_cap_reached`, `credit_exhausted`."""
    await _take(unit, account, key_id, max_amount)
    unit.session.add(CreditHoldRow(job_id=job_id, account=account, key_id=key_id, max_amount=max_amount))
    await unit.session.flush()


async def hold_more_credit(unit: Unit, job_id: JobId, more: int) -> None:
    """The same for a job that may cost more from now on: of the key that submitted it, whichever asks."""
    held = await unit.session.get_one(CreditHoldRow, job_id)
    await _take(unit, AccountId(held.account), held.key_id, more)
    held.max_amount += more
    await unit.session.flush()


async def _take(unit: Unit, account: AccountId, key_id: str, max_amount: int) -> None:
    key, credit = ApiKeyRow, CreditRow
    within_key = (
        update(key)
        .where(key.key_id == key_id, key.spent + key.held + max_amount <= key.spend_cap)
        .values(held=key.held + max_amount)
    )
    within_credit = (
        update(credit)
        .where(credit.account == account, credit.spent + credit.held + max_amount <= credit.granted)
        .values(held=credit.held + max_amount)
    )
    if not await _changed(unit, within_key):
        row = await unit.session.get_one(key, key_id, populate_existing=True)
        raise Conflict(
            "this job may cost more than the API key has left",
            code="spend_cap_reached",
            field="spec.limits.max_cost",
            value=max_amount,
            hint=f"{unit.tokens(row.spend_cap - row.spent - row.held)} of {unit.tokens(row.spend_cap)} are left: {_FIT}, or use another"
            " key",
        )
    if not await _changed(unit, within_credit):
        left = unit.tokens((await credit_view(unit, account)).available)
        raise Conflict(
            "this job may cost more than the account's credit",
            code="credit_exhausted",
            field="spec.limits.max_cost",
            value=max_amount,
            hint=f"{left} are left: {_FIT}, or ask the operator for more",
        )


_FIT = "limits.max_cost or a shorter limits.max_duration fits a job into that"


async def close_credit(unit: Unit, hold: HoldRow) -> None:
    """The job is closed: what it has cost is spent, the rest is free again. Once per job; nothing for jobs that a wallet pays."""
    held = await unit.session.get(CreditHoldRow, hold.job_id)
    if held is None or not held.open:
        return
    held.open = False
    await unit.session.flush()
    refunded = await unit.session.scalar(select(func.sum(RefundRow.amount)).where(RefundRow.job_id == hold.job_id))
    cost = hold.billed - int(refunded or 0)
    for table, is_it in ((ApiKeyRow, ApiKeyRow.key_id == held.key_id), (CreditRow, CreditRow.account == held.account)):
        await unit.session.execute(
            update(table)
            .where(is_it)
            .values(held=table.held - held.max_amount, spent=table.spent + cost)
            .execution_options(synchronize_session=False)
        )


async def _changed(unit: Unit, statement: Update) -> bool:
    result = await unit.session.execute(statement.execution_options(synchronize_session=False))
    return isinstance(result, CursorResult) and result.rowcount == 1


def _view(row: CreditRow) -> CreditView:
    return CreditView(
        account=AccountId(row.account),
        granted=row.granted,
        spent=row.spent,
        held=row.held,
        available=row.granted - row.spent - row.held,
    )
