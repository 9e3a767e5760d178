"""A vault's statement: every posting of the ledger that moved its money, with its cause, between two balances.

The four figures are one identity at any moment: free + held + owed = in_vault. They are sums over the entries themselves, so a
statement cannot say anything that the ledger does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import BigInteger, ColumnElement, case, func, literal, or_, select, tuple_

from torg_marketplace.flow.cursors import cursor_of, row_in
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.vaults import vault_view
from torg_marketplace.storage import ledger
from torg_marketplace.storage.models import LeaseRow
from torg_marketplace.storage.money_models import CommitmentRow, EntryRow, HoldRow, PostingRow
from torg_protocol.api import Statement, StatementFigures, StatementLine
from torg_protocol.ids import AccountId, JobId, LeaseId, VaultAddress
from torg_protocol.refunds import RefundCause

# What one posting makes possible for another comes after it, also within one millisecond.
_STAGES = {"hold": 1, "earn": 2, "refund": 3, "payable": 3, "release": 4, "refunded": 5, "capture": 6, "closed": 7}
_STAGE = case(*((PostingRow.key.startswith(f"{name}:"), stage) for name, stage in _STAGES.items()), else_=0)


async def statement(
    unit: Unit, account: AccountId, vault: str, *, since_ms: int, until_ms: int, cursor: str | None, limit: int
) -> Statement:
    """Of [since_ms, until_ms), oldest first. The cursor names the last posting of the page before. Raises NotFound vault_unknown."""
    await vault_view(unit, account, vault)
    within = (PostingRow.at_ms >= since_ms, PostingRow.at_ms < until_ms)
    keys = select(EntryRow.posting).where(_is_of(vault)).distinct()
    query = (
        select(PostingRow).where(PostingRow.key.in_(keys), *within).order_by(PostingRow.at_ms, _STAGE, PostingRow.key)
    )
    if cursor is not None:
        query = query.where(_after(await row_in(unit.session, cursor, query, PostingRow.key)))
    found = (await unit.session.scalars(query.limit(limit + 1))).all()
    entries = await _entries(unit, found[:limit])
    jobs = await _jobs(unit, entries)
    return Statement(
        vault=VaultAddress(vault),
        since_ms=since_ms,
        until_ms=until_ms,
        opening=await _balances(unit, vault, before_ms=since_ms),
        closing=await _balances(unit, vault, before_ms=until_ms),
        lines=tuple(_line(posting, entries[posting.key], jobs) for posting in found[:limit]),
        next_cursor=cursor_of(found[limit - 1].key) if len(found) > limit else None,
    )


def _after(last: PostingRow) -> ColumnElement[bool]:
    stage = _STAGES.get(last.key.partition(":")[0], 0)
    place = tuple_(literal(last.at_ms, BigInteger), literal(stage), literal(last.key))
    return tuple_(PostingRow.at_ms, _STAGE, PostingRow.key) > place


def _is_of(vault: str) -> ColumnElement[bool]:
    """Accounts of the ledger that hold this vault's money: see `storage/ledger.py`."""
    jobs = select(literal(ledger.held("")) + HoldRow.job_id).where(HoldRow.vault == vault)
    leases = select(literal(ledger.pending("")) + CommitmentRow.lease_id).where(CommitmentRow.vault == vault)
    return or_(
        EntryRow.account.in_([ledger.free(vault), ledger.chain(vault), ledger.credit(vault)]),
        EntryRow.account.startswith(ledger.payable(vault, ""), autoescape=True),
        EntryRow.account.in_(jobs),
        EntryRow.account.in_(leases),
    )


async def _entries(unit: Unit, postings: Iterable[PostingRow]) -> dict[str, list[EntryRow]]:
    found: dict[str, list[EntryRow]] = defaultdict(list)
    query = select(EntryRow).where(EntryRow.posting.in_([posting.key for posting in postings]))
    for entry in await unit.session.scalars(query.order_by(EntryRow.posting, EntryRow.number)):
        found[entry.posting].append(entry)
    return found


async def _jobs(unit: Unit, entries: Mapping[str, Iterable[EntryRow]]) -> dict[str, str]:
    """Lease -> its job, of the leases in these entries."""
    prefix = ledger.pending("")
    accounts = (entry.account for rows in entries.values() for entry in rows)
    leases = {account.removeprefix(prefix) for account in accounts if account.startswith(prefix)}
    query = select(LeaseRow.lease_id, LeaseRow.job_id).where(LeaseRow.lease_id.in_(leases))
    return {row[0]: row[1] for row in (await unit.session.execute(query)).all()}


async def _balances(unit: Unit, vault: str, *, before_ms: int) -> StatementFigures:
    kind = func.substr(EntryRow.account, 1, func.instr(EntryRow.account, ":") - 1)
    if unit.session.get_bind().dialect.name == "postgresql":
        kind = func.split_part(EntryRow.account, ":", 1)
    query = (
        select(kind, func.sum(EntryRow.amount))
        .join(PostingRow, PostingRow.key == EntryRow.posting)
        .where(_is_of(vault), PostingRow.at_ms < before_ms)
        .group_by(kind)
    )
    return _figures([(name, int(amount)) for name, amount in (await unit.session.execute(query)).all()])


def _line(posting: PostingRow, entries: Iterable[EntryRow], jobs: Mapping[str, str]) -> StatementLine:
    named, amounts = dict[str, str](), list[tuple[str, int]]()
    for entry in entries:
        kind, _, name = entry.account.partition(":")
        named[kind] = name
        amounts.append((kind, entry.amount))
    job_id = named.get("held", jobs.get(named.get("pending", "")))
    return StatementLine(
        at_ms=posting.at_ms,
        cause=posting.cause,
        refund=RefundCause(code) if (code := ledger.refund_cause(posting.cause)) is not None else None,
        job_id=JobId(job_id) if job_id is not None else None,
        lease_id=LeaseId(named["pending"]) if "pending" in named else None,
        moved=_figures(amounts),
    )


def _figures(amounts: Iterable[tuple[str, int]]) -> StatementFigures:
    sums: dict[str, int] = defaultdict(int)
    for kind, amount in amounts:
        sums[kind] += amount
    return StatementFigures(
        free=sums["free"],
        held=sums["held"],
        owed=sums["pending"] + sums["payable"],
        credit=sums["credit"],
        in_vault=-sums["chain"],  # tokens that left, minus those that came
    )
