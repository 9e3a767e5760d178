"""Bans: images, wallets and nodes that this marketplace does not serve; and reports of abuse, from which they may follow."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection
from typing import Any

from solders.pubkey import Pubkey
from sqlalchemy import and_, func, or_, select

from torg_marketplace.flow.operate import left_after, stays, suspend_node
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.suspension import release
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.bans import BanKind, names_of
from torg_marketplace.storage.among import among
from torg_marketplace.storage.case_models import AbuseReportRow, BanRow
from torg_marketplace.storage.models import JobRow, NodeRow
from torg_protocol.cases import AbuseRequest, AbuseView
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited
from torg_protocol.ids import AccountId, NodeId
from torg_protocol.jobspec import JobSpec

log = logging.getLogger(__name__)
_ALLOWED_KEPT = 10_000  # wallets and images that are remembered not to be banned
_OPEN_REPORTS = 20  # of one reporter: more is not read anyway


async def ban(unit: Unit, kind: BanKind, subject: str, *, because: str) -> dict[str, Any]:
    """From now on. What runs of a banned image or wallet runs on; a node's leases end with a checkpoint and go elsewhere. Safe to repeat: the
    first reason stays, which the answer says.

    Raises Invalid because_missing or subject_invalid, NotFound node_unknown.
    """
    if not because.strip():
        raise Invalid("say why", code="because_missing", field="--because", hint="those who are refused read it")
    check_subject(kind, subject)
    if kind == "node":
        await suspend_node(unit, NodeId(subject), because=because, stop=True, cause="ban")
    row = await unit.session.get(BanRow, (kind, subject))
    if row is not None:
        return _columns(row) | {"note": stays(row.because, row.at_ms, f"unban {kind}, ban {kind}")}
    row = BanRow(kind=kind, subject=subject, because=because, at_ms=unit.now_ms)
    unit.session.add(row)
    await unit.session.flush()
    log.warning("banned %s %s: %s", kind, subject, because)
    return _columns(row)


def check_subject(kind: BanKind, subject: str) -> None:
    """A ban that nothing can ever meet would only look as if somebody were kept out. Raises Invalid subject_invalid."""
    if kind == "wallet":
        is_one, hint = _is_account(subject), "an address as torg account show prints it, or acct_..."
    else:  # of a node somebody else knows
        is_one = kind == "node" or re.fullmatch(r"\S{0,511}[^\s:@/]", subject) is not None
        hint = "as jobs name it: a repository with or without its tag, or a digest"
    if not is_one:
        raise Invalid(f"this names no {kind}", code="subject_invalid", field=kind, value=subject, hint=hint)


def _is_account(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return text.startswith("acct_") or bool(Pubkey.from_string(text))
    return False


async def lift(unit: Unit, kind: BanKind, subject: str, *, because: str) -> dict[str, Any]:
    """Of a node the answer says what it stays suspended for. Raises NotFound ban_unknown."""
    row = await unit.session.get(BanRow, (kind, subject))
    if row is None:
        raise NotFound(f"this {kind} is not banned", code="ban_unknown", field=kind, value=subject)
    await unit.session.delete(row)
    await unit.session.flush()
    log.warning("the ban of %s %s is lifted: %s", kind, subject, because)
    if kind != "node":
        return _columns(row)
    node = await node_row(unit, subject)
    await release(unit, node, "ban", f"lifted: {because}")
    return _columns(row) | left_after(node)


async def bans(unit: Unit) -> list[dict[str, Any]]:
    return [_columns(row) for row in await unit.session.scalars(select(BanRow).order_by(BanRow.kind, BanRow.subject))]


async def check_allowed(unit: Unit, account: AccountId, spec: JobSpec | None = None) -> None:
    """Raises Forbidden wallet_banned or image_banned, with the operator's reason."""
    image_of = {name: image for image in (spec.images if spec is not None else ()) for name in names_of(image)}
    subjects = bans_on(account, spec)
    if unasked := [subject for subject in subjects if not unit.is_settled(BanRow, subject)]:
        await read_bans(unit, unasked)
    rows = [row for subject in subjects if (row := unit.known(BanRow, subject)) is not None]
    because = {(row.kind, row.subject): row.because for row in rows}
    if (why := because.get(("wallet", account))) is not None:
        raise Forbidden(
            f"this marketplace takes no jobs of this wallet: {why}",
            code="wallet_banned",
            field="account",
            value=account,
            hint="your vault is your own, close it: torg vault close; write to the operator if this is wrong",
        )
    for name, image in image_of.items():
        if (why := because.get(("image", name))) is not None:
            raise Forbidden(
                f"this marketplace runs no such image: {why}",
                code="image_banned",
                field="image",
                value=image,
                hint="use another image; write to the operator if this is wrong",
            )


async def check_allowed_lately(unit: Unit, account: AccountId, spec: JobSpec) -> None:
    """`check_allowed` for an answer that promises nothing: whom and what no ban named within `book_check_ms` is not asked about again."""
    book, subjects = unit.market.book, bans_on(account, spec)
    for subject in subjects:
        if 0 <= unit.now_ms - book.allowed_at_ms.get(subject, 0) < unit.policy.book_check_ms:
            unit.note_absent(BanRow, subject)
    asked = [subject for subject in subjects if not unit.is_settled(BanRow, subject)]
    await check_allowed(unit, account, spec)
    if len(book.allowed_at_ms) > _ALLOWED_KEPT:
        book.allowed_at_ms.clear()
    book.allowed_at_ms.update(dict.fromkeys(asked, unit.now_ms))


def bans_on(account: AccountId, spec: JobSpec | None) -> list[tuple[BanKind, str]]:
    """What `check_allowed` asks about, for `read_bans`."""
    images: tuple[str, ...] = spec.images if spec is not None else ()
    return [("wallet", account), *(("image", name) for image in images for name in names_of(image))]


async def read_bans(unit: Unit, subjects: Collection[tuple[BanKind, str]]) -> None:
    of_kind = {"wallets": "wallet", "images": "image"}
    asked = {name: [subject for kind, subject in subjects if kind == of_kind[name]] for name in of_kind}
    with unit.session.no_autoflush:
        found = (await unit.session.scalars(_AMONG, asked)).all()
    for subject in set(subjects) - {(row.kind, row.subject) for row in found}:
        unit.note_absent(BanRow, subject)


_AMONG = select(BanRow).where(
    or_(
        and_(BanRow.kind == "wallet", among(BanRow.subject, "wallets")),
        and_(BanRow.kind == "image", among(BanRow.subject, "images")),
    )
)


async def banned(unit: Unit, kind: BanKind, subject: str) -> str | None:
    """Why; None when it is not."""
    row = await unit.session.get(BanRow, (kind, subject))
    return row.because if row is not None else None


async def report_abuse(unit: Unit, reporter: AccountId, request: AbuseRequest) -> AbuseView:
    """Safe to repeat with the same words. Raises NotFound abuse_subject_unknown, RateLimited too_many_reports."""
    known_job = await unit.session.get(JobRow, request.subject)
    if known_job is None and await unit.session.get(NodeRow, request.subject) is None:
        raise NotFound(
            "no such job or node",
            code="abuse_subject_unknown",
            field="subject",
            value=request.subject,
            hint="a job's id (job_...) or a node's address, as torg offers shows it",
        )
    mine = (AbuseReportRow.reporter == reporter, AbuseReportRow.state == "open")
    same = select(AbuseReportRow).where(
        *mine, AbuseReportRow.subject == request.subject, AbuseReportRow.reason == request.reason
    )
    row = (await unit.session.scalars(same)).first()
    if row is None:
        if (await unit.session.scalar(select(func.count()).where(*mine)) or 0) >= _OPEN_REPORTS:
            raise RateLimited(
                f"{_OPEN_REPORTS} reports of yours wait already",
                code="too_many_reports",
                hint="the operator reads them; wait until some are closed",
                retry_after_s=86_400,
            )
        row = AbuseReportRow(
            report_id=unit.new_id("report"),
            reporter=reporter,
            subject=request.subject,
            reason=request.reason,
            state="open",
            reported_at_ms=unit.now_ms,
        )
        unit.session.add(row)
        await unit.session.flush()
        log.warning("abuse report %s about %s: %s", row.report_id, row.subject, row.reason)
    return AbuseView(report_id=row.report_id, subject=row.subject, state="open", reported_at_ms=row.reported_at_ms)


async def abuse_reports(unit: Unit) -> list[dict[str, Any]]:
    """For the operator: open ones first, then the newest."""
    query = select(AbuseReportRow).order_by(AbuseReportRow.state.desc(), AbuseReportRow.report_id.desc())
    return [_columns(row) for row in await unit.session.scalars(query.limit(200))]


async def close_report(unit: Unit, report_id: str, *, note: str) -> dict[str, Any]:
    """Raises NotFound report_unknown, Conflict report_closed."""
    row = await unit.session.get(AbuseReportRow, report_id)
    if row is None:
        raise NotFound("no such report", code="report_unknown", field="report_id", value=report_id)
    if row.state == "closed":
        raise Conflict("this report is closed", code="report_closed", field="report_id", value=report_id, hint=row.note)
    row.state, row.note = "closed", note
    await unit.session.flush()
    return _columns(row)


def _columns(row: BanRow | AbuseReportRow) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}
