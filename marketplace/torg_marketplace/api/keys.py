"""API keys of an account, and the credit that pays for what they do. Only the account's wallet makes or revokes them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from torg_marketplace.api.auth import JobsReader, Wallet
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.api_keys import api_key_page, create_api_key, revoke_api_key
from torg_marketplace.flow.credit import credit_view
from torg_protocol.accounts import ApiKeyPage, ApiKeyRequest, ApiKeyView, CreditView, NewApiKey

router = APIRouter(prefix="/v1", tags=["keys"], route_class=StrictRoute)


@router.post("/keys", status_code=201)
async def post_key(body: ApiKeyRequest, caller: Wallet, edge: TheEdge) -> NewApiKey:
    """A new API key. Its secret is in this answer and nowhere else."""
    async with edge.market.transaction() as unit:
        return await create_api_key(unit, caller.account, body)


@router.get("/keys")
async def get_keys(caller: Wallet, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None) -> ApiKeyPage:
    """Your API keys with what they have spent, oldest first."""
    async with edge.market.reading() as unit:
        return await api_key_page(unit, caller.account, cursor=cursor, limit=limit)


@router.delete("/keys/{key_id}")
async def delete_key(
    key_id: Annotated[str, Path(pattern=r"^key_[0-9a-z]{26}$")], caller: Wallet, edge: TheEdge
) -> ApiKeyView:
    """Revokes a key at once; its running jobs go on. Safe to repeat."""
    async with edge.market.transaction() as unit:
        return await revoke_api_key(unit, caller.account, key_id)


@router.get("/credit")
async def get_credit(caller: JobsReader, edge: TheEdge) -> CreditView:
    """What the operator has credited your account, in base units, and what is left of it."""
    async with edge.market.reading() as unit:
        return await credit_view(unit, caller.account)
