"""Is this process there, and can it work? Served by every role."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.reconcile import fee_payer_warning
from torg_protocol.api import Health
from torg_protocol.errors import Unavailable

router = APIRouter(tags=["market"], route_class=StrictRoute)


@router.get("/healthz")
async def healthz() -> Health:
    """This process answers."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(edge: TheEdge) -> Health:
    """The database answers too, and this process is not about to end. `warnings` are for its operator: it works, and will not for long."""
    if edge.ending.is_set():
        raise Unavailable("this process is about to end", code="shutting_down", hint="ask another one")
    async with edge.market.reading() as unit:
        await unit.session.execute(select(1))
    warning = fee_payer_warning(edge.market)
    return Health(status="ready", warnings=(warning,) if warning is not None else ())
