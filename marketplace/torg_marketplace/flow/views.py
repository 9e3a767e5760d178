"""Views: rows as the API shows them. Read-only; may be called in `market.reading()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select

from torg_marketplace.flow.cursors import id_in, party_in
from torg_marketplace.flow.queue_place import queue_place
from torg_marketplace.flow.rows import (
    job_of,
    leases_of_job,
    max_duration_ms_of,
    node_row,
    node_snapshots,
    resumed_from,
    spec_of,
)
from torg_marketplace.flow.tasks import check_task, task_views
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.volumes import volumes_of_job
from torg_marketplace.matching.snapshot import NodeSnapshot
from torg_marketplace.storage.models import JobEventRow, JobRow, LeaseRow
from torg_protocol.api import JobEvent, JobPage, JobView, LeaseView, NodeView, OfferPage
from torg_protocol.errors import Gone, Invalid, NotFound
from torg_protocol.ids import AccountId, Digest, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.jobspec import BlobRef
from torg_protocol.ports import PortState
from torg_protocol.states import OPEN_JOB_STATES, EndReason, JobState, LeaseState
from torg_protocol.task_lines import TaskLines, rank_name
from torg_protocol.usage import OutputFile

MAX_PAGE = 200
MAX_EVENTS = 500


async def job_view(unit: Unit, account: AccountId, job_id: JobId) -> JobView:
    """Raises NotFound job_unknown."""
    job = await job_of(unit, account, job_id)
    return (await view_of(unit, job)).model_copy(update={"queue": await queue_place(unit, job)})


@dataclass(frozen=True, slots=True)
class JobFilter:
    """None: whatever it is. Times are of the job's creation: from `since_ms` on, before `until_ms`."""

    states: tuple[JobState, ...] = ()
    name: str | None = None
    vault: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        wanted = [
            (JobRow.state.in_(self.states), bool(self.states)),
            (JobRow.name == self.name, self.name is not None),
            (JobRow.vault == self.vault, self.vault is not None),
            (JobRow.created_at_ms >= (self.since_ms or 0), self.since_ms is not None),
            (JobRow.created_at_ms < (self.until_ms or 0), self.until_ms is not None),
        ]
        return [condition for condition, asked in wanted if asked]


async def jobs_page(
    unit: Unit, account: AccountId, *, wanted: JobFilter = JobFilter(), cursor: str | None = None, limit: int = 50
) -> JobPage:
    """Newest first. The cursor is the last job id of the page before. Raises Invalid limit_invalid."""
    if not 1 <= limit <= MAX_PAGE:
        raise Invalid("not a page size", code="limit_invalid", field="limit", value=limit, hint=f"1 to {MAX_PAGE}")
    query = select(JobRow).where(JobRow.client == account).order_by(JobRow.job_id.desc()).limit(limit + 1)
    query = query.where(*wanted.conditions())
    if cursor is not None:
        query = query.where(JobRow.job_id < id_in(cursor, "job"))  # ids sort by creation
    rows = (await unit.session.scalars(query)).all()
    page = rows[:limit]
    views = tuple([await view_of(unit, job) for job in page])
    return JobPage(jobs=views, next_cursor=page[-1].job_id if len(rows) > limit else None)


async def job_events(
    unit: Unit, account: AccountId, job_id: JobId, after_id: int = 0, limit: int = MAX_EVENTS
) -> tuple[JobEvent, ...]:
    """Events after `after_id`, oldest first. Raises NotFound job_unknown."""
    events, _ = await events_after(unit, account, job_id, after_id, limit)
    return events


async def events_after(
    unit: Unit, account: AccountId, job_id: JobId, after_id: int = 0, limit: int = MAX_EVENTS
) -> tuple[tuple[JobEvent, ...], bool]:
    """The events, and whether the stream is over with them: the job is closed and nothing comes after."""
    job = await job_of(unit, account, job_id)
    query = select(JobEventRow).where(JobEventRow.job_id == job.job_id, JobEventRow.id > after_id)
    rows = (await unit.session.scalars(query.order_by(JobEventRow.id).limit(limit))).all()
    return tuple(_event(row) for row in rows), job.closed_at_ms is not None and len(rows) < limit


async def removed_after(unit: Unit, account: AccountId, job_id: JobId, after_id: int) -> JobEvent | None:
    """What to tell a reader first of whose events some are not kept any more. It has the id from which he reads on: nothing else is skipped."""
    job = await job_of(unit, account, job_id)
    if job.removed_event_id <= after_id:
        return None
    data = {
        "code": "events_removed",
        "until_id": job.removed_event_id,
        "until_ms": job.removed_until_ms,
        "hint": "some events up to until_id, of until_ms at the latest, are not kept any more: logs, progress, what only helped at the time. "
        f"Where the job stands: GET /v1/jobs/{job_id}. What it wrote, while that is kept: GET /v1/jobs/{job_id}/logs/whole",
    }
    return JobEvent(id=after_id, at_ms=unit.now_ms, kind="removed", data=data)


async def job_log(
    unit: Unit, account: AccountId, job_id: JobId, stream: str, offset: int = 0, task: str | None = None
) -> str:
    """The live log of all attempts, one after the other, from a byte offset. Of a job of several tasks: of one as it wrote it, or of all
    with the task's name before each line; of a gang with the rank. Raises NotFound, Invalid stream_unknown, Invalid task_unknown; Gone log_removed."""
    if stream not in {"stdout", "stderr"}:
        raise Invalid("no such stream", code="stream_unknown", field="stream", value=stream, hint="stdout or stderr")
    job = await job_of(unit, account, job_id)
    query = select(JobEventRow).where(JobEventRow.job_id == job.job_id, JobEventRow.kind == "log")
    rows = await unit.session.scalars(query.order_by(JobEventRow.id))
    chunks = [row.data for row in rows if row.data["stream"] == stream]
    if not chunks and job.removed_event_id and await _has_written(unit, job, stream):
        raise Gone(
            "the live log of this job is not kept any more",
            code="log_removed",
            field="job_id",
            value=job_id,
            hint=f"the whole log, while that is kept: torg logs -o FILE {job_id}, GET /v1/jobs/{job_id}/logs/whole",
        )
    if task is not None:
        check_task(job, task)
        text = "".join(str(data["text"]) for data in chunks if data.get("task") == task)
    elif spec_of(job).gang is not None:
        lines = TaskLines()
        text = "".join(lines.take(rank_name(data["rank"]), stream, data["text"]) for data in chunks) + lines.rest()
    elif tasks := spec_of(job).tasks:
        lines = TaskLines(max(len(item.name) for item in tasks))
        text = "".join(lines.take(data["task"], stream, data["text"]) for data in chunks) + lines.rest()
    else:
        text = "".join(str(data["text"]) for data in chunks)
    return text.encode()[offset:].decode(errors="replace")


async def _has_written(unit: Unit, job: JobRow, stream: str) -> bool:
    """Whether any of it came in while the job ran."""
    leases = await leases_of_job(unit, job.job_id)
    of_tasks = (where for lease in leases for where in lease.task_log_bytes if where.endswith(f"/{stream}"))
    return any(of_tasks) or any(getattr(lease, f"{stream}_bytes") for lease in leases)


async def node_views(unit: Unit) -> tuple[NodeView, ...]:
    return tuple(_node_view(node) for node in await node_snapshots(unit))


@dataclass(frozen=True, slots=True)
class OfferFilter:
    """None, 0: whatever it is."""

    gpu_class: str | None = None
    region: str | None = None
    isolation: str | None = None
    min_gpus: int = 0
    min_slots_free: int = 0
    max_price_per_gpu_hour: int | None = None

    def takes(self, offer: NodeView) -> bool:
        return (
            self.gpu_class in {None, offer.gpu_class}
            and self.region in {None, offer.region}
            and (self.isolation is None or self.isolation in offer.isolation)
            and offer.gpus >= self.min_gpus
            and offer.slots_free >= self.min_slots_free
            and (self.max_price_per_gpu_hour is None or offer.price_per_gpu_hour <= self.max_price_per_gpu_hour)
        )


async def offer_page(unit: Unit, wanted: OfferFilter, *, cursor: str | None = None, limit: int = 50) -> OfferPage:
    """By node id, which is also the cursor."""
    offers = sorted((offer for offer in await node_views(unit) if wanted.takes(offer)), key=lambda offer: offer.node)
    after = "" if cursor is None else party_in(cursor)
    rest = [offer for offer in offers if offer.node > after]
    return OfferPage(offers=tuple(rest[:limit]), next_cursor=rest[limit - 1].node if len(rest) > limit else None)


async def node_view(unit: Unit, node_id: NodeId) -> NodeView:
    """Raises NotFound node_unknown."""
    await node_row(unit, node_id)
    nodes = await node_snapshots(unit, only=[node_id])
    if not nodes:
        raise NotFound("this node has left", code="node_unknown", field="node_id", value=node_id)
    return _node_view(nodes[0])


async def view_of(unit: Unit, job: JobRow) -> JobView:
    leases = await leases_of_job(unit, job.job_id) if job.generation else ()
    closed = job.closed_at_ms is not None
    return JobView(
        job_id=job.id,
        name=job.name,
        state=JobState(job.state),
        client=job.account,
        vault=VaultAddress(job.vault),
        spec=spec_of(job),
        spec_digest=Digest(job.spec_digest),
        max_amount=job.max_amount,
        max_duration_ms=max_duration_ms_of(job),
        price_ceiling=job.price_ceiling,
        final_amount=sum(lease.amount for lease in leases) if closed else None,
        created_at_ms=job.created_at_ms,
        ended_at_ms=job.ended_at_ms,
        reason=EndReason(job.reason) if job.reason is not None else None,
        detail=job.detail,
        waiting_for=job.waiting_for if job.state == JobState.QUEUED else None,
        progress=job.progress,
        leases=tuple(_lease_view(lease, job) for lease in leases),
        outputs=_outputs(job, leases),
        volumes=await volumes_of_job(unit, job),
    )


def _outputs(job: JobRow, leases: Sequence[LeaseRow]) -> tuple[OutputFile, ...]:
    """Of the newest attempt whose work is paid for, of a gang those of rank 0; sealed until the verdict."""
    if job.state in OPEN_JOB_STATES:
        return ()
    paid = [lease for lease in leases if lease.state == LeaseState.VERIFIED and lease.rank == 0]
    return tuple(OutputFile.model_validate(item) for item in paid[-1].outputs) if paid else ()


def _lease_view(lease: LeaseRow, job: JobRow) -> LeaseView:
    checkpoint = resumed_from(lease)
    return LeaseView(
        lease_id=LeaseId(lease.lease_id),
        attempt=lease.attempt,
        rank=lease.rank,
        node=lease.node,
        state=lease.status,
        reason=lease.ended_for,
        exit_code=lease.exit_code,
        detail=lease.detail,
        price_per_gpu_hour=lease.price_per_gpu_hour,
        granted_at_ms=lease.granted_at_ms,
        started_at_ms=lease.started_at_ms,
        exited_at_ms=lease.exited_at_ms,
        stop_reason=EndReason(lease.stop_reason) if lease.stop_reason is not None else None,
        stop_requested_at_ms=lease.stop_requested_at_ms,
        reported_at_ms=lease.reported_at_ms,
        ended_at_ms=lease.ended_at_ms,
        decided_at_ms=lease.decided_at_ms,
        billed_ms=lease.billed_ms,
        unbilled_ms=lease.unbilled_ms,
        amount=lease.amount,
        verification_amount=lease.verification_amount,
        resumed_from=checkpoint.name if checkpoint is not None else None,
        newest_checkpoint=str(lease.checkpoint["name"]) if lease.checkpoint is not None else None,
        tasks=task_views(lease, job),
        ports=tuple(PortState.model_validate(port) for port in lease.ports),
        logs={name: BlobRef.model_validate(blob) for name, blob in (lease.logs or {}).items()},
    )


def _node_view(node: NodeSnapshot) -> NodeView:
    inventory, slots = node.offer.inventory, node.offer.slots
    return NodeView(
        node=node.node_id,
        state=node.state,
        liveness=node.liveness,
        gpu_class=inventory.gpu_class,
        gpus=node.gpus,
        gpus_free=len(node.free_gpus()),
        gpus_out=node.gpus_out,
        cpu_millis=inventory.cpu_millis,
        memory_bytes=inventory.memory_bytes,
        disk_bytes=inventory.disk_bytes,
        price_per_gpu_hour=node.offer.price_per_gpu_hour,
        spot_price_per_gpu_hour=node.offer.spot_price_per_gpu_hour,
        slots=slots,
        slots_free=sum(f"slot:{number}" not in node.units_in_use for number in range(slots)),
        executor=node.offer.executor,
        isolation=node.offer.isolation,
        egress=node.offer.egress,
        own_root=node.offer.own_root,
        protocol_version=node.protocol_version,
        gpu_slices=node.offer.gpu_slices,
        region=node.offer.region,
        inventory_source=inventory.source,
        proof=node.proof,
    )


def _event(row: JobEventRow) -> JobEvent:
    return JobEvent.model_validate(
        {"id": row.id, "at_ms": row.at_ms, "kind": row.kind, "lease_id": row.lease_id, "data": row.data}
    )
