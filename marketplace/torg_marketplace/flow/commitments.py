"""Commitments: which range of a vault a lease is paid from, and by which cap."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from torg_marketplace.flow.credit import raised_credit_cap
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.vaults import remember_cap, signer_of, vault_row
from torg_marketplace.rules.money import lowest_gap
from torg_marketplace.storage.money_models import CapRow, CommitmentRow, VaultRow
from torg_protocol.caps import Commitment, SignedCap
from torg_protocol.errors import Conflict
from torg_protocol.ids import LeaseId, VaultAddress


async def commit_lease(
    unit: Unit, *, vault: str, lease_id: LeaseId, payout_address: str, max_amount: int
) -> tuple[Commitment, str, SignedCap]:
    """A range of the vault that is this lease's alone until it is settled, signed by the marketplace; with a cap that the node can capture
    the whole range with: of several, the one that lives longest.

    Raises Conflict vault_closing, vault_blocked, or commitment_waits when the unsettled ranges of other leases leave no gap
    of this size below the client's caps: settling frees it. Of a credit vault, whose caps we sign, only its money is a limit.
    """
    row = await vault_row(unit, vault)
    if row.close_at_s or row.closed or row.blocked:
        raise Conflict(
            "the vault is closing or blocked", code="vault_closing", field="vault", value=vault, hint=row.blocked
        )
    with unit.session.no_autoflush:  # the grant is written as a whole
        stored = (await unit.session.execute(_TAKEN, {"vault": vault})).all()
    taken = [(row[0], row[1]) for row in stored]
    taken += [(each.lower, each.upper) for each in unit.added(CommitmentRow) if each.vault == vault]
    end = row.chain_settled + row.chain_balance
    lower = lowest_gap(taken, start=row.chain_settled, size=max_amount, end=end)
    cap = None if lower is None else await _covering_cap(unit, row, lower + max_amount)
    if lower is None or cap is None:
        raise Conflict(
            "the vault's free ranges are too small until earlier leases are settled",
            code="commitment_waits",
            field="vault",
            value=vault,
        )
    row.commitments += 1
    commitment = Commitment(
        vault=VaultAddress(vault),
        sequence=row.commitments,
        lease_id=lease_id,
        payout_address=payout_address,
        committed_before=lower,
        committed_after=lower + max_amount,
    )
    unit.session.add(
        CommitmentRow(lease_id=lease_id, vault=vault, sequence=row.commitments, lower=lower, upper=lower + max_amount)
    )
    return commitment, commitment.sign(unit.market.identity), cap


_TAKEN = select(CommitmentRow.lower, CommitmentRow.upper).where(
    CommitmentRow.vault == bindparam("vault"), CommitmentRow.released.is_(False)
)
_COVERING = (
    select(CapRow)
    .where(
        CapRow.vault == bindparam("vault"),
        CapRow.signer == bindparam("signer"),
        CapRow.cap >= bindparam("at_least"),
        CapRow.valid_until_s > bindparam("now_s"),
    )
    .order_by(CapRow.valid_until_s.desc(), CapRow.cap)
    .limit(1)
)


async def _covering_cap(unit: Unit, vault: VaultRow, committed_after: int) -> SignedCap | None:
    asked = {"vault": vault.address, "at_least": committed_after, "now_s": unit.now_ms // 1000}
    asked["signer"] = signer_of(vault, unit.now_ms)  # of a key that was replaced the program takes none
    with unit.session.no_autoflush:
        row = (await unit.session.scalars(_COVERING, asked)).one_or_none()
        if row is not None:
            return signed_cap(row)
        if (raised := await raised_credit_cap(unit, vault, committed_after)) is not None:
            await remember_cap(unit, raised)
        return raised


def signed_cap(row: CapRow) -> SignedCap:
    return SignedCap(
        vault=VaultAddress(row.vault),
        cap=row.cap,
        valid_until_s=row.valid_until_s,
        signer=row.signer,
        signature=row.signature,
    )
