"""Named data: an account's names for blobs that it may read."""

from __future__ import annotations

import difflib

from sqlalchemy import func, select, update

from torg_marketplace.flow.blobs import check_stored
from torg_marketplace.flow.cursors import cursor_of, name_in
from torg_marketplace.flow.storage_quota import check_storage, expires_at_ms, storage_quota
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.models import BlobUploadRow
from torg_protocol.data import DATA_NAME, MAX_NAMES_PER_ACCOUNT, DataPage, DataRequest, DataView
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import AccountId, Digest
from torg_protocol.inputs import BlobInput
from torg_protocol.jobspec import BlobRef, JobSpec

_NO_DATA, _UNKNOWN = "you have no data of this name", "data_unknown"


async def name_data(market: Market, account: AccountId, name: str, request: DataRequest) -> DataView:
    """Gives the name to a stored blob, or moves it there. Safe to repeat. Raises Invalid `blob_missing`, `blob_size_mismatch`;
    Conflict `too_many_names`, `storage_quota_reached`."""
    blob = BlobRef(digest=request.digest, size_bytes=request.size_bytes)
    await check_stored(market, account, blob, field="digest")
    async with market.transaction() as unit:
        row = await unit.session.get(DataRow, (account, name))
        freed_bytes = 0 if row is None else row.size_bytes
        await check_storage(unit, account, added_bytes=blob.size_bytes, freed_bytes=freed_bytes, field="size_bytes")
        if row is None:
            await _check_room(unit, account)
            row = DataRow(account=account, name=name)
            unit.session.add(row)
        row.digest, row.size_bytes = blob.digest, blob.size_bytes
        row.named_at_ms = row.used_at_ms = unit.now_ms
        await unit.session.flush()
        return _view(unit, row)


async def data_view(unit: Unit, account: AccountId, name: str) -> DataView:
    return _view(unit, await _row(unit, account, name))


async def data_page(unit: Unit, account: AccountId, *, cursor: str | None, limit: int) -> DataPage:
    """By name."""
    query = select(DataRow).where(DataRow.account == account).order_by(DataRow.name).limit(limit + 1)
    if cursor is not None:
        query = query.where(DataRow.name > name_in(cursor, DATA_NAME))
    rows = (await unit.session.scalars(query)).all()
    stored = select(func.coalesce(func.sum(BlobUploadRow.size_bytes), 0)).where(BlobUploadRow.account == account)
    total = select(func.coalesce(func.sum(DataRow.size_bytes), 0)).where(DataRow.account == account)
    return DataPage(
        data=tuple(_view(unit, row) for row in rows[:limit]),
        next_cursor=cursor_of(rows[limit - 1].name) if len(rows) > limit else None,
        total_bytes=int(await unit.session.scalar(total) or 0),
        stored_bytes=int(await unit.session.scalar(stored) or 0),
        kept=await storage_quota(unit, account),
    )


async def forget_data(unit: Unit, account: AccountId, name: str) -> DataView:
    """Takes the name away. Jobs that use the blob keep it. Raises NotFound `data_unknown`."""
    row = await _row(unit, account, name)
    await unit.session.delete(row)
    await unit.session.flush()
    return _view(unit, row)


async def note_data_used(unit: Unit, account: AccountId, spec: JobSpec) -> None:
    """Of a job that was submitted, with its names resolved."""
    names = {item.name for _, item in spec.placed_inputs() if isinstance(item, BlobInput) and item.name is not None}
    if names:
        mine = update(DataRow).where(DataRow.account == account, DataRow.name.in_(names))
        await unit.session.execute(mine.values(used_at_ms=unit.now_ms).execution_options(synchronize_session=False))


async def pin_data(unit: Unit, account: AccountId, spec: JobSpec) -> JobSpec:
    """The spec with the blobs that its names stand for now. Raises Invalid `data_unknown`, which names the field."""
    wanted = spec.named_data()
    blobs = {}
    for field, name in wanted:
        row = await unit.session.get(DataRow, (account, name))
        if row is None:
            raise Invalid(_NO_DATA, code=_UNKNOWN, field=field, value=name, hint=await _instead(unit, account, name))
        blobs[name] = BlobRef(digest=Digest(row.digest), size_bytes=row.size_bytes)
    return spec.with_data(blobs) if wanted else spec


async def _row(unit: Unit, account: AccountId, name: str) -> DataRow:
    row = await unit.session.get(DataRow, (account, name))
    if row is None:
        hint = await _instead(unit, account, name)
        raise NotFound(_NO_DATA, code=_UNKNOWN, field="name", value=name, hint=hint)
    return row


async def _instead(unit: Unit, account: AccountId, name: str) -> str:
    names = (await unit.session.scalars(select(DataRow.name).where(DataRow.account == account))).all()
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return "see: torg data ls" if names else "you keep none yet: torg data put PATH --name NAME"


async def _check_room(unit: Unit, account: AccountId) -> None:
    count = await unit.session.scalar(select(func.count()).where(DataRow.account == account)) or 0
    if count >= MAX_NAMES_PER_ACCOUNT:
        raise Conflict(f"you have {count} names", code="too_many_names", hint="take some away: torg data rm NAME")


def _view(unit: Unit, row: DataRow) -> DataView:
    return DataView(
        name=row.name,
        digest=Digest(row.digest),
        size_bytes=row.size_bytes,
        named_at_ms=row.named_at_ms,
        expires_at_ms=expires_at_ms(unit, row.used_at_ms),
    )
