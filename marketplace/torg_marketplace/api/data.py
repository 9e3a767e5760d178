"""Named data: what an account keeps for more than one job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from torg_marketplace.api.auth import DataReader, DataWriter
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.data import data_page, data_view, forget_data, name_data
from torg_protocol.data import DATA_NAME, DataPage, DataRequest, DataView

router = APIRouter(prefix="/v1/data", tags=["data"], route_class=StrictRoute)
Name = Annotated[str, Path(pattern=DATA_NAME)]


@router.get("")
async def get_data_names(caller: DataReader, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None) -> DataPage:
    """Your named data, by name, with the bytes of all of it."""
    async with edge.market.reading() as unit:
        return await data_page(unit, caller.account, cursor=cursor, limit=limit)


@router.get("/{name}")
async def get_data_name(name: Name, caller: DataReader, edge: TheEdge) -> DataView:
    """Which blob a name stands for."""
    async with edge.market.reading() as unit:
        return await data_view(unit, caller.account, name)


@router.put("/{name}")
async def put_data_name(name: Name, body: DataRequest, caller: DataWriter, edge: TheEdge) -> DataView:
    """Names a blob that you uploaded, or moves the name to it. Safe to repeat."""
    return await name_data(edge.market, caller.account, name, body)


@router.delete("/{name}")
async def delete_data_name(name: Name, caller: DataWriter, edge: TheEdge) -> DataView:
    """Takes the name away; jobs that use the blob keep it."""
    async with edge.market.transaction() as unit:
        return await forget_data(unit, caller.account, name)
