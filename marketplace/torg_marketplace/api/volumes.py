"""Volumes: what jobs share with the jobs after them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from torg_marketplace.api.auth import DataReader, DataWriter
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.volume_names import delete_volume, put_volume, volume_page, volume_view
from torg_protocol.volumes import VOLUME_NAME, VolumePage, VolumeRequest, VolumeView

router = APIRouter(prefix="/v1/volumes", tags=["data"], route_class=StrictRoute)
Name = Annotated[str, Path(pattern=VOLUME_NAME)]


@router.get("")
async def get_volumes(caller: DataReader, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None) -> VolumePage:
    """Your volumes, by name, with the bytes of all of them."""
    async with edge.market.reading() as unit:
        return await volume_page(unit, caller.account, cursor=cursor, limit=limit)


@router.get("/{name}")
async def get_volume(name: Name, caller: DataReader, edge: TheEdge) -> VolumeView:
    """Its newest generation, which job writes it, and which jobs use it."""
    async with edge.market.reading() as unit:
        return await volume_view(unit, caller.account, name)


@router.put("/{name}")
async def put_volume_content(name: Name, body: VolumeRequest, caller: DataWriter, edge: TheEdge) -> VolumeView:
    """Makes a blob that you uploaded the next generation; a volume that is not there is made. Safe to repeat."""
    return await put_volume(edge.market, caller.account, name, body)


@router.delete("/{name}")
async def delete_volume_content(name: Name, caller: DataWriter, edge: TheEdge) -> VolumeView:
    """Deletes a volume that no open job uses, with what is in it."""
    async with edge.market.transaction() as unit:
        return await delete_volume(unit, caller.account, name)
