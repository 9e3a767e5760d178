"""Volumes as their account sees them: what is kept under which name, put there, or taken away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import func, select

from torg_marketplace.flow.blobs import check_stored
from torg_marketplace.flow.cursors import cursor_of, name_in
from torg_marketplace.flow.storage_quota import check_storage, expires_at_ms, storage_quota
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.volumes import add_volume, instead
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.volume_models import JobVolumeRow, VolumeRow
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import AccountId, Digest, JobId
from torg_protocol.jobspec import BlobRef
from torg_protocol.volumes import VOLUME_NAME, VolumePage, VolumeRequest, VolumeView


async def put_volume(market: Market, account: AccountId, name: str, request: VolumeRequest) -> VolumeView:
    """What is stored becomes the volume's next generation; a volume that is not there is made. Safe to repeat. Raises Invalid `blob_missing`,
    `blob_size_mismatch`; Conflict `volume_busy` while a job writes it, `volume_moved`, `too_many_volumes`, `storage_quota_reached`."""
    blob = BlobRef(digest=request.digest, size_bytes=request.size_bytes)
    await check_stored(market, account, blob, field="digest")
    async with market.transaction() as unit:
        row = await unit.session.get(VolumeRow, (account, name))
        if row is not None and row.writer is not None:
            raise Conflict(
                f"{row.writer} writes this volume",
                code="volume_busy",
                field="name",
                value=name,
                hint=f"wait for it, or stop it: torg cancel {row.writer}",
            )
        known = 0 if row is None else row.generation
        if request.generation is not None and request.generation != known:
            raise Conflict(
                f"this volume is at generation {known}",
                code="volume_moved",
                field="generation",
                value=request.generation,
                hint="look at what is in it now, then put it again",
            )
        freed_bytes = 0 if row is None else row.size_bytes
        await check_storage(unit, account, added_bytes=blob.size_bytes, freed_bytes=freed_bytes, field="size_bytes")
        row = row or await add_volume(unit, account, name)
        row.used_at_ms = unit.now_ms
        if row.digest != blob.digest:
            row.generation += 1
            row.digest, row.size_bytes, row.made_by = blob.digest, blob.size_bytes, None
            row.stored_at_ms = unit.now_ms
        unit.wake("match")  # somebody may wait to read it
        (view,) = await _views(unit, account, [row])
        return view


async def volume_view(unit: Unit, account: AccountId, name: str) -> VolumeView:
    """Raises NotFound `volume_unknown`."""
    (view,) = await _views(unit, account, [await _row(unit, account, name)])
    return view


async def volume_page(unit: Unit, account: AccountId, *, cursor: str | None, limit: int) -> VolumePage:
    """By name."""
    query = select(VolumeRow).where(VolumeRow.account == account).order_by(VolumeRow.name).limit(limit + 1)
    if cursor is not None:
        query = query.where(VolumeRow.name > name_in(cursor, VOLUME_NAME))
    rows = (await unit.session.scalars(query)).all()
    total = select(func.coalesce(func.sum(VolumeRow.size_bytes), 0)).where(VolumeRow.account == account)
    return VolumePage(
        volumes=await _views(unit, account, rows[:limit]),
        next_cursor=cursor_of(rows[limit - 1].name) if len(rows) > limit else None,
        total_bytes=int(await unit.session.scalar(total) or 0),
        kept=await storage_quota(unit, account),
    )


async def delete_volume(unit: Unit, account: AccountId, name: str) -> VolumeView:
    """What is in it goes. Raises NotFound `volume_unknown`, Conflict `volume_in_use` while open jobs name it."""
    view = await volume_view(unit, account, name)
    if view.users:
        raise Conflict(
            f"{len(view.users)} job(s) that are not over use this volume",
            code="volume_in_use",
            field="name",
            value=name,
            hint=f"wait for them, or stop them: torg cancel {view.users[0]}",
        )
    await unit.session.delete(await _row(unit, account, name))
    await unit.session.flush()
    return view


async def _row(unit: Unit, account: AccountId, name: str) -> VolumeRow:
    row = await unit.session.get(VolumeRow, (account, name))
    if row is None:
        raise NotFound(
            "you have no volume of this name",
            code="volume_unknown",
            field="name",
            value=name,
            hint=await instead(unit, account, name),
        )
    return row


async def _views(unit: Unit, account: AccountId, rows: Sequence[VolumeRow]) -> tuple[VolumeView, ...]:
    names = [row.name for row in rows]
    using = (
        select(JobVolumeRow.name, JobVolumeRow.job_id)
        .join(JobRow, JobRow.job_id == JobVolumeRow.job_id)
        .where(JobVolumeRow.account == account, JobVolumeRow.name.in_(names), JobRow.closed_at_ms.is_(None))
        .order_by(JobVolumeRow.job_id)
    )
    users: dict[str, list[JobId]] = defaultdict(list)
    for name, job_id in await unit.session.execute(using):
        users[name].append(JobId(job_id))
    return tuple(
        VolumeView(
            name=row.name,
            generation=row.generation,
            digest=Digest(row.digest) if row.digest is not None else None,
            size_bytes=row.size_bytes,
            made_by=JobId(row.made_by) if row.made_by is not None else None,
            created_at_ms=row.created_at_ms,
            stored_at_ms=row.stored_at_ms,
            used_at_ms=row.used_at_ms,
            expires_at_ms=expires_at_ms(unit, row.used_at_ms, in_use=bool(users[row.name])),
            writer=JobId(row.writer) if row.writer is not None else None,
            users=tuple(users[row.name]),
        )
        for row in rows
    )
