"""Commitments: which range of a vault a lease is paid from, and by which cap."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import aliased

from torg_marketplace.flow.caps import remember_cap, remembered_caps, signed_cap
from torg_marketplace.flow.credit import raised_credit_cap
from torg_marketplace.flow.notes import Note
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.vaults import read_vaults, signer_of, vault_row
from torg_marketplace.rules.money import TakenRanges
from torg_marketplace.storage.among import among
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
    if (_TAKEN, vault) not in unit.noted:
        await read_commitments(unit, [vault])
    taken = unit.noted[_TAKEN, vault]
    end = row.chain_settled + row.chain_balance
    lower = taken.lowest_gap(start=row.chain_settled, size=max_amount, end=end)
    cap = None if lower is None else await _covering_cap(unit, row, lower + max_amount)
    if lower is None or cap is None:
        raise Conflict(
            "the vault's free ranges are too small until earlier leases are settled",
            code="commitment_waits",
            field="vault",
            value=vault,
        )
    taken.take(lower, lower + max_amount)
    row.commitments += 1
    commitment = Commitment(
        vault=VaultAddress(vault),
        sequence=row.commitments,
        lease_id=lease_id,
        payout_address=payout_address,
        committed_before=lower,
        committed_after=lower + max_amount,
    )
    unit.session.write(
        CommitmentRow,
        lease_id=lease_id,
        vault=vault,
        sequence=row.commitments,
        lower=lower,
        upper=lower + max_amount,
        decided=False,
        released=False,
    )
    return commitment, commitment.sign(unit.market.identity), cap


_TAKEN = Note[TakenRanges]()  # ranges of a vault, those of this transaction included
_CAPS = Note[list[CapRow]]()  # of a vault, those that live longest first: at most `_CAPS_READ`
_CAPS_READ = 16


async def read_commitments(unit: Unit, vaults: Collection[str]) -> None:
    """What `commit_lease` decides on, for all these vaults at once. Safe to repeat: what this transaction has committed since stays."""
    vaults = [vault for vault in vaults if (_TAKEN, vault) not in unit.noted]
    ranges: dict[str, list[tuple[int, int]]] = {vault: [] for vault in vaults}
    for vault in vaults:
        unit.noted[_CAPS, vault] = []
    with unit.session.no_autoflush:  # grants are written as a whole
        await read_vaults(unit, vaults)
        for vault, lower, upper in await unit.session.execute(_RANGES, {"vaults": list(vaults)}):
            ranges[vault].append((lower, upper))
        asked = {"vaults": list(vaults), "now_s": unit.now_ms // 1000}
        for cap in await unit.session.scalars(_NEWEST, asked):
            unit.noted[_CAPS, cap.vault].append(cap)
    for vault, taken in ranges.items():
        unit.noted[_TAKEN, vault] = TakenRanges(taken)


_RANGES = select(CommitmentRow.vault, CommitmentRow.lower, CommitmentRow.upper).where(
    among(CommitmentRow.vault, "vaults"), CommitmentRow.released.is_(False)
)
_ORDER = (CapRow.valid_until_s.desc(), CapRow.cap)
_RANKED = (
    select(CapRow, func.row_number().over(partition_by=CapRow.vault, order_by=_ORDER).label("rank"))
    .where(among(CapRow.vault, "vaults"), CapRow.valid_until_s > bindparam("now_s"))
    .subquery()
)
_Ranked = aliased(CapRow, _RANKED)
_NEWEST = select(_Ranked).where(_RANKED.c.rank <= _CAPS_READ).order_by(_RANKED.c.vault, _RANKED.c.rank)
_COVERING = (
    select(CapRow)
    .where(
        CapRow.vault == bindparam("vault"),
        CapRow.signer == bindparam("signer"),
        CapRow.cap >= bindparam("at_least"),
        CapRow.valid_until_s > bindparam("now_s"),
    )
    .order_by(*_ORDER)
    .limit(1)
)


async def _covering_cap(unit: Unit, vault: VaultRow, committed_after: int) -> SignedCap | None:
    signer = signer_of(vault, unit.now_ms)  # of a key that was replaced the program takes none
    newest = unit.noted[_CAPS, vault.address]
    covering = next((cap for cap in newest if cap.cap >= committed_after and cap.signer == signer), None)
    if covering is None and len(newest) >= _CAPS_READ:  # one that does not live as long, perhaps
        asked = {"vault": vault.address, "at_least": committed_after, "now_s": unit.now_ms // 1000, "signer": signer}
        with unit.session.no_autoflush:
            covering = (await unit.session.scalars(_COVERING, asked)).one_or_none()
    remembered = remembered_caps(unit, vault.address)
    of_now = [cap for cap in remembered if cap.cap >= committed_after and cap.signer == signer]
    if covering is not None:
        of_now.append(signed_cap(covering))
    if of_now:
        return min(of_now, key=lambda cap: (-cap.valid_until_s, cap.cap))
    with unit.session.no_autoflush:
        raised = await raised_credit_cap(unit, vault, committed_after)
    if raised is not None:
        remember_cap(unit, raised)
    return raised
