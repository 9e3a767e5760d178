"""Webhooks of an account: who is told of its jobs' events, what was sent, and sending it again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from torg_marketplace.api.auth import WebhookOwner
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.webhooks import create_webhook, delete_webhook, delivery_page, replay, webhook_page
from torg_protocol.webhooks import (
    DeliveryPage,
    NewWebhook,
    Replayed,
    ReplayRequest,
    WebhookPage,
    WebhookRequest,
    WebhookView,
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=StrictRoute)
WebhookIdPath = Annotated[str, Path(pattern=r"^hook_[0-9a-z]{26}$")]


@router.post("", status_code=201)
async def post_webhook(body: WebhookRequest, caller: WebhookOwner, edge: TheEdge) -> NewWebhook:
    """Tells a URL of the account's events from now on. The answer has the secret that signs what is sent."""
    async with edge.market.transaction() as unit:
        return await create_webhook(unit, caller.account, body)


@router.get("")
async def get_webhooks(caller: WebhookOwner, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None) -> WebhookPage:
    """Your webhooks, oldest first."""
    async with edge.market.reading() as unit:
        return await webhook_page(unit, caller.account, cursor=cursor, limit=limit)


@router.delete("/{webhook_id}")
async def delete_webhook_by_id(webhook_id: WebhookIdPath, caller: WebhookOwner, edge: TheEdge) -> WebhookView:
    """Stops a webhook; what waits is not sent."""
    async with edge.market.transaction() as unit:
        return await delete_webhook(unit, caller.account, webhook_id)


@router.get("/{webhook_id}/deliveries")
async def get_deliveries(
    webhook_id: WebhookIdPath, caller: WebhookOwner, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None
) -> DeliveryPage:
    """What was sent or waits, newest first, with the newest answer."""
    async with edge.market.reading() as unit:
        return await delivery_page(unit, caller.account, webhook_id, cursor=cursor, limit=limit)


@router.post("/{webhook_id}/replay")
async def replay_deliveries(
    webhook_id: WebhookIdPath, body: ReplayRequest, caller: WebhookOwner, edge: TheEdge
) -> Replayed:
    """Sends deliveries again, with the same message ids: those named, or all that failed."""
    async with edge.market.transaction() as unit:
        return Replayed(deliveries=await replay(unit, caller.account, webhook_id, body.delivery_ids))
