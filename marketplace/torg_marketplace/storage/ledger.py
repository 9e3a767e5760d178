"""Double entry: money moves between named accounts, every posting adds up to zero, and happens once.

Accounts, and what a positive balance means:

    chain:VAULT               tokens that left this vault minus tokens that came in: the vault's balance, negated
    free:VAULT                the client's, not held for anything
    held:JOB                  kept aside for a job
    pending:LEASE             earned, waiting for a verdict
    payable:VAULT:ADDRESS     owed to an address, to be captured from that vault
    credit:VAULT              refunds that nothing which waited could cover: later fees out of this vault work them off
    promised:VAULT            the marketplace's side of that credit, negative
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import CursorResult, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningInsert

from torg_marketplace.storage.base import MAX_AMOUNT
from torg_marketplace.storage.inserts import insert_if_new
from torg_marketplace.storage.money_models import EntryRow, PostingRow
from torg_protocol.errors import TorgError

_POSTINGS, _ENTRIES = (row.metadata.tables[row.__tablename__] for row in (PostingRow, EntryRow))  # rows without objects
_INSERT_ENTRIES = insert(_ENTRIES)
COLLECTED = "torg_postings"


class LedgerError(TorgError):
    """A programming error about to become a wrong balance; the transaction must roll back."""

    default_code = "ledger_refused"


@dataclass(frozen=True, slots=True)
class Entry:
    account: str
    amount: int  # base units; positive comes in, negative goes out


def chain(vault: str) -> str:
    return f"chain:{vault}"


def free(vault: str) -> str:
    return f"free:{vault}"


def held(job_id: str) -> str:
    return f"held:{job_id}"


def pending(lease_id: str) -> str:
    return f"pending:{lease_id}"


def payable(vault: str, address: str) -> str:
    return f"payable:{vault}:{address}"


def credit(vault: str) -> str:
    return f"credit:{vault}"


def promised(vault: str) -> str:
    return f"promised:{vault}"


_REFUND_OF = "refund: "


def refund_of(cause: str, job_id: str) -> str:
    """A posting's cause that programs can read again: `refund_cause`."""
    return f"{_REFUND_OF}{cause} of {job_id}"


def refund_cause(cause: str) -> str | None:
    """The code of a refund's cause; None for other postings."""
    return cause.removeprefix(_REFUND_OF).partition(" ")[0] if cause.startswith(_REFUND_OF) else None


def move(source: str, target: str, amount: int) -> list[Entry]:
    return [Entry(source, -amount), Entry(target, amount)]


@dataclass(frozen=True, slots=True)
class Posting:
    key: str
    cause: str
    entries: tuple[Entry, ...]
    at_ms: int


def post_later(session: AsyncSession, *, key: str, cause: str, entries: Sequence[Entry], at_ms: int) -> None:
    """Writes a posting once, with all others of the transaction, by two statements at its end (`write_collected`).

    Raises LedgerError as `post` does; key_reused of a posting that an earlier transaction wrote only at the end.
    """
    posting = Posting(key, cause, tuple(_checked(key, entries)), at_ms)
    known = collected(session).setdefault(key, posting)
    if known.entries != posting.entries:
        raise LedgerError("this key was used for another posting", code="key_reused", field="key", value=key)


def collected(session: AsyncSession) -> dict[str, Posting]:
    """Postings that are not written yet, in their order. Cut it back to undo some."""
    postings: dict[str, Posting] = session.info.setdefault(COLLECTED, {})
    return postings


async def write_collected(session: AsyncSession) -> None:
    """Call before every commit."""
    postings = dict(collected(session))
    if not postings:
        return
    collected(session).clear()
    rows = [{"key": each.key, "cause": each.cause, "at_ms": each.at_ms} for each in postings.values()]
    fresh = set(await session.scalars(_insert_fresh(session.get_bind().dialect.name), rows))
    for each in postings.values():
        if each.key not in fresh and await entries_of(session, each.key) != list(each.entries):
            raise LedgerError("this key was used for another posting", code="key_reused", field="key", value=each.key)
    entries = [row for each in postings.values() if each.key in fresh for row in _rows(each.key, each.entries)]
    if entries:
        await session.execute(_INSERT_ENTRIES, entries)


async def post(session: AsyncSession, *, key: str, cause: str, entries: Sequence[Entry], at_ms: int) -> bool:
    """Writes a posting once, at once. True when it was written now, False when the same one is there already.

    Raises LedgerError: not_zero, empty, amount_out_of_range, key_reused (same key, other entries).
    """
    kept = _checked(key, entries)
    insert_once = insert_if_new(PostingRow, session.get_bind().dialect.name)
    written = await session.execute(insert_once, {"key": key, "cause": cause, "at_ms": at_ms})
    if not isinstance(written, CursorResult) or written.rowcount != 1:
        if await entries_of(session, key) != kept:
            raise LedgerError("this key was used for another posting", code="key_reused", field="key", value=key)
        return False
    await session.execute(_INSERT_ENTRIES, _rows(key, kept))
    return True


def _checked(key: str, entries: Sequence[Entry]) -> list[Entry]:
    kept = [entry for entry in entries if entry.amount != 0]
    if sum(entry.amount for entry in kept) != 0:
        raise LedgerError("a posting must add up to zero", code="not_zero", field="entries", value=str(kept))
    if not kept:
        raise LedgerError("a posting must move something", code="empty", field="key", value=key)
    if any(abs(entry.amount) > MAX_AMOUNT for entry in kept):
        raise LedgerError("an amount is out of range", code="amount_out_of_range", field="entries", value=str(kept))
    return kept


def _rows(key: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {"posting": key, "number": number, "account": entry.account, "amount": entry.amount}
        for number, entry in enumerate(entries)
    ]


@cache
def _insert_fresh(dialect: str) -> ReturningInsert[str]:
    """Of several at once: the keys that were not there."""
    return insert_if_new(PostingRow, dialect).returning(_POSTINGS.c.key)


async def entries_of(session: AsyncSession, key: str) -> list[Entry]:
    rows = await session.scalars(select(EntryRow).where(EntryRow.posting == key).order_by(EntryRow.number))
    return [Entry(row.account, row.amount) for row in rows]


async def balance(session: AsyncSession, account: str) -> int:
    await write_collected(session)
    total = await session.scalar(select(func.coalesce(func.sum(EntryRow.amount), 0)).where(EntryRow.account == account))
    return int(total or 0)


async def problems(session: AsyncSession) -> list[str]:
    """What is wrong with the books as a whole: unbalanced postings, overdrawn accounts. Empty when nothing is."""
    found = []
    unbalanced = select(EntryRow.posting).group_by(EntryRow.posting).having(func.sum(EntryRow.amount) != 0)
    found += [f"posting {key} does not add up to zero" for key in await session.scalars(unbalanced)]
    overdrawn = (
        select(EntryRow.account, func.sum(EntryRow.amount))
        .where(EntryRow.account.not_like("chain:%"), EntryRow.account.not_like("promised:%"))
        .group_by(EntryRow.account)
        .having(func.sum(EntryRow.amount) < 0)
    )
    found += [f"account {account} is overdrawn by {-total}" for account, total in await session.execute(overdrawn)]
    return found
