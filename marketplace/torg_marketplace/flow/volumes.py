"""Volumes of jobs, through a job's life: named at its submission, taken at a grant, stored by its node, made a generation at its end.

One job at a time writes a volume: it takes it with its first grant, in the grant's transaction, and frees it when it is closed, however
that comes. What nodes store passes through the lease's fence like every event; a node whose lease was given away changes nothing.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import func, select

from torg_marketplace.flow.blobs import use_blob
from torg_marketplace.flow.rows import node_row, spec_of
from torg_marketplace.flow.storage_quota import check_storage
from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.backlog import Waiting
from torg_marketplace.matching.fleet import WARM_ITEMS
from torg_marketplace.rules.volumes import GOES_ON_FROM_END, MAKES_GENERATION, waits_for
from torg_marketplace.storage.events import add_job_event
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.volume_models import JobVolumeRow, VolumeRow
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import AccountId, Digest, JobId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import VolumeAtStart, VolumesStored
from torg_protocol.states import EndReason
from torg_protocol.volumes import JobVolume

MAX_VOLUMES_PER_ACCOUNT = 1_000


async def name_volumes(unit: Unit, account: AccountId, job_id: JobId, spec: JobSpec) -> None:
    """Those that the job writes are there from now on. Raises Invalid `volume_unknown` for one that it would only read, Conflict
    `too_many_volumes`."""
    if spec.written_volumes:
        await check_storage(unit, account, added_bytes=1, freed_bytes=0, field="volumes")
    for name, volume in spec.kept_volumes.items():
        if await unit.session.get(VolumeRow, (account, name)) is None:
            if volume.read_only:
                raise Invalid(
                    "you have no volume of this name",
                    code="volume_unknown",
                    field=f"volumes.{name}",
                    value=name,
                    hint=await instead(unit, account, name),
                )
            await add_volume(unit, account, name)
        row = JobVolumeRow(
            job_id=job_id, name=name, account=account, read_only=volume.read_only, left_fence=0, problem=""
        )
        unit.session.add(row)


async def add_volume(unit: Unit, account: AccountId, name: str) -> VolumeRow:
    """An empty one. Raises Conflict `too_many_volumes`."""
    count = await unit.session.scalar(select(func.count()).where(VolumeRow.account == account)) or 0
    if count >= MAX_VOLUMES_PER_ACCOUNT:
        raise Conflict(
            f"you have {count} volumes",
            code="too_many_volumes",
            hint="delete some: torg volume ls, torg volume rm NAME",
        )
    row = VolumeRow(account=account, name=name, created_at_ms=unit.now_ms, used_at_ms=unit.now_ms)
    unit.session.add(row)
    await unit.session.flush()
    return row


async def instead(unit: Unit, account: AccountId, name: str) -> str:
    """The way out for a name that is unknown."""
    names = (await unit.session.scalars(select(VolumeRow.name).where(VolumeRow.account == account))).all()
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return (
        "see: torg volume ls" if names else "a job that writes it makes it: torg run -v NAME:/data, or torg volume put"
    )


async def look_for_volumes(unit: Unit, waiting: Sequence[Waiting]) -> tuple[list[Waiting], dict[str, str]]:
    """Of waiting jobs those whose volumes they could have now, each with what it would begin with; and what the others wait for, in words."""
    with_volumes = [job.job_id for job in waiting if job.demand.spec.volumes]
    if not with_volumes:
        return list(waiting), {}
    query = select(JobVolumeRow, VolumeRow).join(
        VolumeRow, (VolumeRow.account == JobVolumeRow.account) & (VolumeRow.name == JobVolumeRow.name)
    )
    found: dict[str, list[tuple[JobVolumeRow, VolumeRow]]] = defaultdict(list)
    for start in range(0, len(with_volumes), 500):
        rows = await unit.session.execute(query.where(JobVolumeRow.job_id.in_(with_volumes[start : start + 500])))
        for mine, volume in rows:
            found[mine.job_id].append((mine, volume))
    ready, blocked = [], {}
    for job in waiting:
        reasons = [why for mine, volume in found[job.job_id] if (why := _waits_for(mine, volume)) is not None]
        if reasons:
            blocked[job.job_id] = "; ".join(reasons)
        else:
            begins = [
                blob.digest for mine, volume in found[job.job_id] if (blob := _begins_with(mine, volume)) is not None
            ]
            ready.append(replace(job, demand=replace(job.demand, begins_with=tuple(begins))) if begins else job)
    return ready, blocked


async def take_volumes(unit: Unit, job: JobRow, spec: JobSpec) -> tuple[VolumeAtStart, ...]:
    """For an attempt, in the transaction that grants it. Raises Conflict `volume_busy`, `volume_gone`."""
    if not spec.kept_volumes:
        return ()
    found = []
    for mine in await _rows_of(unit, job):
        volume = await _volume_of(unit, mine)
        if volume is None:
            raise Conflict(f'volume "{mine.name}" was deleted', code="volume_gone", field="volumes", value=mine.name)
        if (why := _waits_for(mine, volume)) is not None:
            raise Conflict(why, code="volume_busy", field="volumes", value=mine.name)
        if not mine.read_only:
            volume.writer = job.job_id
        blob = _begins_with(mine, volume)
        mine.read_generation, volume.used_at_ms = volume.generation, unit.now_ms
        if blob is not None:
            await use_blob(unit, blob.digest, job.id, client_may_read=True)
        found.append(VolumeAtStart(name=mine.name, generation=volume.generation, blob=blob))
    return tuple(found)


async def on_volumes_stored(unit: Unit, lease: LeaseRow, job: JobRow, body: VolumesStored) -> None:
    """Raises Invalid `volume_not_written`, `volume_not_rank_0`; Conflict `not_started`."""
    if lease.started_at_ms is None:
        raise Conflict("this lease has not started", code="not_started", field="lease_id", value=lease.lease_id)
    if lease.rank:
        raise Invalid(
            "the volumes of a gang are those of rank 0", code="volume_not_rank_0", field="volumes", value=lease.rank
        )
    rows = {row.name: row for row in await _rows_of(unit, job) if not row.read_only}
    for snapshot in body.volumes:
        if (mine := rows.get(snapshot.name)) is None:
            raise Invalid(
                "this job does not write this volume", code="volume_not_written", field="volumes", value=snapshot.name
            )
        mine.problem, mine.left_fence = snapshot.problem, lease.fence if body.at_end else 0
        if snapshot.blob is None:
            continue
        mine.left = snapshot.blob.model_dump(mode="json")
        if not body.at_end:
            mine.draft = mine.left
        await use_blob(unit, snapshot.blob.digest, job.id, client_may_read=True)
        await _remember_warm(unit, lease, snapshot.blob.digest)
        data = {"name": mine.name, "size_bytes": snapshot.blob.size_bytes, "at_end": body.at_end}
        add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="volume", data=data, at_ms=unit.now_ms)


async def lacking_volumes(unit: Unit, lease: LeaseRow, job: JobRow) -> list[str]:
    """In words, those that a job writes and of which its node has not stored what is in them at the end."""
    if lease.rank or not spec_of(job).written_volumes:
        return []
    rows = [row for row in await _rows_of(unit, job) if not row.read_only]
    return [
        f'volume "{row.name}"' + (f" ({row.problem})" if row.problem else "")
        for row in rows
        if row.left_fence != lease.fence or row.problem
    ]


async def end_of_attempt(unit: Unit, job: JobRow, fence: int, reason: EndReason) -> None:
    """What the attempt stored at its end becomes a generation, what the next attempt begins with, or neither: then the job keeps it."""
    if not spec_of(job).written_volumes:
        return
    for mine in await _rows_of(unit, job):
        if mine.read_only or mine.left is None or mine.left_fence != fence or mine.problem:
            continue
        if reason in GOES_ON_FROM_END:
            mine.draft = mine.left
        if reason in MAKES_GENERATION:
            await _make_generation(unit, job, mine, BlobRef.model_validate(mine.left))


async def free_volumes(unit: Unit, job: JobRow) -> None:
    """The job is over: who waits for what it wrote may begin."""
    if not spec_of(job).kept_volumes:
        return
    for mine in await _rows_of(unit, job):
        volume = await _volume_of(unit, mine)
        if volume is None:
            continue
        volume.used_at_ms = unit.now_ms
        if volume.writer == job.job_id:
            volume.writer = None
    unit.wake("match")


async def volumes_of_job(unit: Unit, job: JobRow) -> tuple[JobVolume, ...]:
    if not spec_of(job).kept_volumes:
        return ()
    return tuple(
        JobVolume(
            name=row.name,
            read_only=row.read_only,
            read_generation=row.read_generation,
            written_generation=row.written_generation,
            digest=Digest(row.left["digest"]) if row.left is not None else None,
            size_bytes=row.left["size_bytes"] if row.left is not None else 0,
            detail=row.problem,
        )
        for row in await _rows_of(unit, job)
    )


async def _make_generation(unit: Unit, job: JobRow, mine: JobVolumeRow, blob: BlobRef) -> None:
    volume = await _volume_of(unit, mine)
    if volume is None or volume.writer != job.job_id:
        return  # an operator has taken it from this job
    volume.used_at_ms = unit.now_ms
    if volume.digest == blob.digest:
        return  # as it was
    volume.generation += 1
    volume.digest, volume.size_bytes, volume.made_by = blob.digest, blob.size_bytes, job.job_id
    volume.stored_at_ms, mine.written_generation = unit.now_ms, volume.generation


def _waits_for(mine: JobVolumeRow, volume: VolumeRow) -> str | None:
    return waits_for(
        mine.name,
        job_id=mine.job_id,
        read_only=mine.read_only,
        generation=volume.generation,
        writer=volume.writer,
    )


def _begins_with(mine: JobVolumeRow, volume: VolumeRow) -> BlobRef | None:
    return volume.blob if mine.draft is None else BlobRef.model_validate(mine.draft)


async def _remember_warm(unit: Unit, lease: LeaseRow, digest: Digest) -> None:
    """Its node keeps what it has just packed: a job that begins with it starts sooner there."""
    node = await node_row(unit, lease.node_id)
    node.warm = [digest, *(item for item in node.warm if item != digest)][:WARM_ITEMS]
    unit.touch(lease.node)


async def _rows_of(unit: Unit, job: JobRow) -> Sequence[JobVolumeRow]:
    query = select(JobVolumeRow).where(JobVolumeRow.job_id == job.job_id).order_by(JobVolumeRow.name)
    return (await unit.session.scalars(query)).all()


async def _volume_of(unit: Unit, mine: JobVolumeRow) -> VolumeRow | None:
    """None: it was deleted."""
    return await unit.session.get(VolumeRow, (mine.account, mine.name))
