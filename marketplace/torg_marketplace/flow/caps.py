"""Caps: what vaults' signers allow to be captured. They are written with the commit, together; this transaction sees them before."""

from __future__ import annotations

from torg_marketplace.flow.notes import Note
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.inserts import insert_if_new
from torg_marketplace.storage.money_models import CapRow
from torg_protocol.caps import SignedCap
from torg_protocol.ids import VaultAddress

_REMEMBERED = Note[list[SignedCap]]()  # of a vault, in this transaction


def remember_cap(unit: Unit, cap: SignedCap) -> None:
    """Captures and grants find it from now on. Safe to repeat."""
    values = {
        "vault": cap.vault,
        "cap": cap.cap,
        "valid_until_s": cap.valid_until_s,
        "signer": cap.signer,
        "signature": cap.signature,
    }
    unit.later(insert_if_new(CapRow, unit.session.get_bind().dialect.name), values)
    unit.noted[_REMEMBERED, cap.vault] = [*remembered_caps(unit, cap.vault), cap]


def remembered_caps(unit: Unit, vault: str) -> list[SignedCap]:
    """In this transaction: what the database does not show yet."""
    return unit.noted.get((_REMEMBERED, vault), [])


def signed_cap(row: CapRow) -> SignedCap:
    return SignedCap(
        vault=VaultAddress(row.vault),
        cap=row.cap,
        valid_until_s=row.valid_until_s,
        signer=row.signer,
        signature=row.signature,
    )
