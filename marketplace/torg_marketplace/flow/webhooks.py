"""Webhooks: who wants to be told, what is to be told (an outbox filled from the event stream), and when to try again.

Events become deliveries by a cursor over `job_events`: no flow that writes an event knows of webhooks. Ids rise in the order of commits,
because writers queue, so nothing is skipped. Sending is `workers/webhooks.py`'s.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, update

from torg_marketplace.flow.cursors import id_in
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.webhook_targets import check_target, target_of
from torg_marketplace.storage.models import JobEventRow, JobRow
from torg_marketplace.storage.webhook_models import DeliveryRow, WebhookCursorRow, WebhookRow
from torg_protocol.api import JobEvent
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import AccountId, JobId
from torg_protocol.webhooks import (
    SECRET_PREFIX,
    DeliveryPage,
    DeliveryView,
    NewWebhook,
    WebhookPage,
    WebhookPayload,
    WebhookRequest,
    WebhookView,
)

MAX_WEBHOOKS_PER_ACCOUNT = 20
_TOO_MANY = "delete one: DELETE /v1/webhooks/{webhook_id}; one may be told of several kinds"
PAUSES_S = (5, 30, 120, 600, 3_600, 3 * 3_600, 6 * 3_600, 12 * 3_600, 24 * 3_600)  # then given up: about two days
_EVENTS_AT_ONCE = 500
_CLAIM_MS = 60_000  # longer than one try takes; a process that dies in one leaves it to the next after this


@dataclass(frozen=True, slots=True)
class Due:
    delivery_id: str
    webhook_id: str
    account: AccountId
    url: str
    secret: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """How much may be begun now: `tries` in all, `of_account` of one account beside what is `under_way`, `of_slow` of those webhooks together."""

    tries: int
    of_account: int
    under_way: Mapping[AccountId, int]
    of_slow: int
    slow: frozenset[str]


async def create_webhook(unit: Unit, account: AccountId, request: WebhookRequest) -> NewWebhook:
    """Of events from now on. Raises Conflict `webhook_exists` for a URL that is told already, `too_many_webhooks`; Invalid and Forbidden for one
    to which nothing would ever be sent."""
    check_target(target_of(request.url), unit.market.policy.webhook_networks)
    living = select(WebhookRow).where(WebhookRow.account == account, WebhookRow.deleted_at_ms.is_(None))
    rows = (await unit.session.scalars(living)).all()
    if any(row.url == request.url for row in rows):
        raise Conflict("this URL is told already", code="webhook_exists", field="url", value=request.url)
    if len(rows) >= MAX_WEBHOOKS_PER_ACCOUNT:
        raise Conflict(f"you have {len(rows)} webhooks", code="too_many_webhooks", hint=_TOO_MANY)
    while await _catch_up(unit) == _EVENTS_AT_ONCE:  # what happened before is not for this one
        pass
    row = WebhookRow(
        webhook_id=unit.new_id("hook"),
        account=account,
        url=request.url,
        kinds=sorted(set(request.kinds)),
        created_at_ms=unit.now_ms,
    )
    unit.session.add(row)
    await unit.session.flush()
    return NewWebhook(webhook=_view(row), secret=webhook_secret(unit.market, row.webhook_id))


def webhook_secret(market: Market, webhook_id: str) -> str:
    """Follows from the marketplace's identity: the database has nothing that could be stolen."""
    root = hashlib.sha256(b"torg webhook secrets" + bytes(market.identity)).digest()
    key = hmac.new(root, webhook_id.encode(), hashlib.sha256).digest()
    return SECRET_PREFIX + base64.b64encode(key).decode()


async def webhook_page(unit: Unit, account: AccountId, *, cursor: str | None, limit: int) -> WebhookPage:
    query = select(WebhookRow).where(WebhookRow.account == account, WebhookRow.deleted_at_ms.is_(None))
    if cursor is not None:
        query = query.where(WebhookRow.webhook_id > id_in(cursor, "hook"))
    rows = (await unit.session.scalars(query.order_by(WebhookRow.webhook_id).limit(limit + 1))).all()
    page = rows[:limit]
    return WebhookPage(
        webhooks=tuple(_view(row) for row in page), next_cursor=page[-1].webhook_id if len(rows) > limit else None
    )


async def delete_webhook(unit: Unit, account: AccountId, webhook_id: str) -> WebhookView:
    """Nothing is sent any more, also of what waits. Raises NotFound `webhook_unknown`."""
    row = await _row(unit, account, webhook_id)
    row.deleted_at_ms = unit.now_ms
    pending = (DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == "pending")
    await unit.session.execute(update(DeliveryRow).where(*pending).values(state="failed", answer="webhook deleted"))
    return _view(row)


async def delivery_page(
    unit: Unit, account: AccountId, webhook_id: str, *, cursor: str | None, limit: int
) -> DeliveryPage:
    await _row(unit, account, webhook_id)
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id).order_by(DeliveryRow.delivery_id.desc())
    if cursor is not None:
        query = query.where(DeliveryRow.delivery_id < id_in(cursor, "msg"))
    rows = (await unit.session.scalars(query.limit(limit + 1))).all()
    page = rows[:limit]
    return DeliveryPage(
        deliveries=tuple(_delivery_view(row) for row in page),
        next_cursor=page[-1].delivery_id if len(rows) > limit else None,
    )


async def replay(unit: Unit, account: AccountId, webhook_id: str, delivery_ids: tuple[str, ...]) -> int:
    """Sends these again, or all that failed; how many. The receiver sees the same message ids."""
    await _row(unit, account, webhook_id)
    wanted = DeliveryRow.delivery_id.in_(delivery_ids) if delivery_ids else DeliveryRow.state == "failed"
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id, wanted).with_for_update()
    rows = (await unit.session.scalars(query)).all()
    for row in rows:
        row.state, row.tries, row.next_try_at_ms = "pending", 0, unit.now_ms
    unit.wake("webhooks")
    return len(rows)


async def enqueue_deliveries(market: Market) -> int:
    """Turns new events into deliveries; how many events it looked at. Once per event, whoever runs it how often."""
    async with market.reading() as unit:
        newest = await unit.session.scalar(select(func.max(JobEventRow.id)))
        cursor = await unit.session.get(WebhookCursorRow, 1)
        if newest is None or (cursor is not None and cursor.event_id >= newest):
            return 0
    async with market.transaction() as unit:
        return await _catch_up(unit)


async def due_deliveries(market: Market, room: Room) -> list[Due]:
    """What is to be sent now and has room, claimed for a minute: nobody else sends it meanwhile."""
    async with market.reading() as unit:
        some = select(DeliveryRow.delivery_id).join(WebhookRow).where(*_due(unit, room)).limit(1)
        if await unit.session.scalar(some) is None:
            return []
    async with market.transaction() as unit:
        query = select(DeliveryRow, WebhookRow.url, WebhookRow.account).join(WebhookRow).where(*_due(unit, room))
        query = query.order_by(DeliveryRow.next_try_at_ms, DeliveryRow.delivery_id).limit(room.tries)
        claimed: list[Due] = []
        under_way, of_slow = Counter(room.under_way), room.of_slow
        for row, url, owner in (await unit.session.execute(query.with_for_update(of=DeliveryRow))).all():
            account, is_slow = AccountId(owner), row.webhook_id in room.slow
            if under_way[account] >= room.of_account or (is_slow and not of_slow):
                continue
            under_way[account] += 1
            of_slow -= is_slow
            row.next_try_at_ms = unit.now_ms + _CLAIM_MS
            row.tries += 1
            secret = webhook_secret(market, row.webhook_id)
            claimed.append(Due(row.delivery_id, row.webhook_id, account, url, secret, row.payload.encode()))
        return claimed


async def record_answer(market: Market, delivery_id: str, answer: str, *, delivered: bool) -> None:
    """Delivered, or when to try again; after the last pause it is given up until somebody replays it."""
    async with market.transaction() as unit:
        row = await unit.session.get_one(DeliveryRow, delivery_id)
        if row.state != "pending":
            return
        row.answer = answer[:200]
        if delivered:
            row.state = "delivered"
        elif row.tries > len(PAUSES_S):
            row.state = "failed"
        else:
            tries = max(row.tries, 1)  # none yet, if it was asked for again while this one was sent
            row.next_try_at_ms = unit.now_ms + PAUSES_S[tries - 1] * 1000


def _due(unit: Unit, room: Room) -> tuple[ColumnElement[bool], ...]:
    full = [account for account, count in room.under_way.items() if count >= room.of_account]
    return (
        DeliveryRow.state == "pending",
        DeliveryRow.next_try_at_ms <= unit.now_ms,
        WebhookRow.account.not_in(full),
        DeliveryRow.webhook_id.not_in(room.slow if not room.of_slow else ()),
    )


async def _catch_up(unit: Unit) -> int:
    cursor = await unit.session.get(WebhookCursorRow, 1, with_for_update=True)
    if cursor is None:
        cursor = WebhookCursorRow(id=1, event_id=0)
        unit.session.add(cursor)
    hooks = list(await unit.session.scalars(select(WebhookRow).where(WebhookRow.deleted_at_ms.is_(None))))
    if not hooks:  # nobody listens: nothing to remember but how far we are
        cursor.event_id = await unit.session.scalar(select(func.max(JobEventRow.id))) or 0
        return 0
    query = select(JobEventRow, JobRow.client).join(JobRow, JobRow.job_id == JobEventRow.job_id)
    query = query.where(JobEventRow.id > cursor.event_id).order_by(JobEventRow.id).limit(_EVENTS_AT_ONCE)
    rows = (await unit.session.execute(query)).all()
    for event, client in rows:
        cursor.event_id = event.id
        for hook in hooks:
            if hook.account == client and event.kind in hook.kinds:
                unit.session.add(_delivery(unit, hook, event))
    return len(rows)


def _delivery(unit: Unit, hook: WebhookRow, event: JobEventRow) -> DeliveryRow:
    shown = JobEvent.model_validate(
        {"id": event.id, "at_ms": event.at_ms, "kind": event.kind, "lease_id": event.lease_id, "data": event.data}
    )
    payload = WebhookPayload(type=f"job.{event.kind}", job_id=JobId(event.job_id), event=shown)
    return DeliveryRow(
        delivery_id=unit.new_id("msg"),
        webhook_id=hook.webhook_id,
        job_id=event.job_id,
        event_id=event.id,
        payload=payload.model_dump_json(),
        next_try_at_ms=unit.now_ms,
    )


async def _row(unit: Unit, account: AccountId, webhook_id: str) -> WebhookRow:
    row = await unit.session.get(WebhookRow, webhook_id)
    if row is None or row.account != account or row.deleted_at_ms is not None:
        raise NotFound("no such webhook of yours", code="webhook_unknown", field="webhook_id", value=webhook_id)
    return row


def _view(row: WebhookRow) -> WebhookView:
    return WebhookView(webhook_id=row.webhook_id, url=row.url, kinds=tuple(row.kinds), created_at_ms=row.created_at_ms)


def _delivery_view(row: DeliveryRow) -> DeliveryView:
    return DeliveryView.model_validate(
        {
            "delivery_id": row.delivery_id,
            "job_id": row.job_id,
            "event_id": row.event_id,
            "state": row.state,
            "tries": row.tries,
            "next_try_at_ms": row.next_try_at_ms if row.state == "pending" else None,
            "answer": row.answer,
        }
    )
