"""What concerns an account itself: its refunds."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from torg_marketplace.api.auth import JobsReader
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.flow.refunds import refunds_of
from torg_protocol.refunds import RefundPage

router = APIRouter(prefix="/v1", tags=["account"])


@router.get("/refunds")
async def get_refunds(
    caller: JobsReader,
    edge: TheEdge,
    job_id: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RefundPage:
    """What was given back to you, oldest first, each signed by the marketplace and with the code of its cause."""
    async with edge.market.reading() as unit:
        return await refunds_of(unit, caller.account, job_id=job_id, cursor=cursor, limit=limit)
