"""Events of leases, from their node: each applied once, in order, under the lease's fence.

Those that come together are applied in one transaction, which other nodes' may share; when one of them is refused, it starts over with each by itself.
Delivered at least once: a sequence that was taken before is acknowledged again and changes nothing. What can never be taken
(a record that does not add up, a move that is not legal) is refused and counts as taken, so that the node does not resend it
for ever; what may be taken later (a blob that is not stored yet, a gap) is refused and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from torg_marketplace.flow.blobs import check_stored, use_blob
from torg_marketplace.flow.crowd import Reads
from torg_marketplace.flow.earnings import read_money
from torg_marketplace.flow.ending import end_lease
from torg_marketplace.flow.report import on_exited, on_released, on_reported
from torg_marketplace.flow.rows import attempt_of, job_row, lease_to_change, node_row, read_leases, spec_of
from torg_marketplace.flow.tasks import on_task_moved
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.usage import on_usage
from torg_marketplace.flow.volumes import on_volumes_stored
from torg_marketplace.logs import about
from torg_marketplace.matching.fleet import WARM_ITEMS
from torg_marketplace.rules import metering
from torg_marketplace.storage.events import add_job_event
from torg_marketplace.storage.models import JobRow, LeaseEventRow, LeaseRow, NodeRow
from torg_marketplace.storage.moves import MovedMeanwhile, move_lease
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import (
    Abandon,
    Accepted,
    Acknowledge,
    CheckpointStored,
    Declined,
    Exited,
    LeaseEvent,
    LeaseEventBody,
    Refused,
    Released,
    Reported,
    Started,
    TaskMoved,
    UsageClaimed,
    VolumesStored,
)
from torg_protocol.states import LIVE_LEASE_STATES, EndReason, LeaseState

_STAGE = "lease events"


class _Refusal(Exception):
    """What an event began is undone with its transaction; that it was refused is written in another."""

    def __init__(self, error: TorgError) -> None:
        super().__init__(error.message)
        self.error = error


async def on_lease_events(market: Market, node_id: NodeId, events: Sequence[LeaseEvent]) -> list[Acknowledge | Refused]:
    """The answers, in order, go back to the node. Asks the blob store before the transaction. Raises only for what is not the
    node's doing (MovedMeanwhile, a broken ledger): the node says again what was not answered."""
    missing = [await _missing_blob(market, node_id, event.body) for event in events]

    async def take_all(unit: Unit) -> list[Acknowledge | Refused]:
        return [await _take(unit, node_id, event, lack) for event, lack in zip(events, missing, strict=True)]

    try:
        return await market.shared(take_all, stage=_STAGE, reads=_reads(events))
    except (_Refusal, MovedMeanwhile):
        return [await on_lease_event(market, node_id, event) for event in events]


def _reads(events: Sequence[LeaseEvent]) -> list[Reads]:
    ending = [event.lease_id for event in events if isinstance(event.body, Reported)]
    return [Reads(read_leases, [event.lease_id for event in events]), Reads(read_money, ending)]


async def on_lease_event(market: Market, node_id: NodeId, event: LeaseEvent) -> Acknowledge | Refused:
    """One by itself."""
    missing = await _missing_blob(market, node_id, event.body)
    try:
        async with market.transaction() as unit:
            return await _take(unit, node_id, event, missing)
    except _Refusal as refusal:
        async with market.transaction() as unit:
            return await _take(unit, node_id, event, missing, refusal.error)


async def _take(
    unit: Unit, node_id: NodeId, event: LeaseEvent, missing: Invalid | None, refusal: TorgError | None = None
) -> Acknowledge | Refused:
    """With `refusal`, the event counts as taken and changes nothing else. Raises _Refusal when it turns out to be one."""
    with about(lease_id=event.lease_id):
        return await _take_it(unit, node_id, event, missing, refusal)


async def _take_it(
    unit: Unit, node_id: NodeId, event: LeaseEvent, missing: Invalid | None, refusal: TorgError | None
) -> Acknowledge | Refused:
    try:
        lease = await _lease_of(unit, node_id, event)
        if event.sequence <= lease.acknowledged:
            return Acknowledge(lease_id=event.lease_id, sequence=event.sequence)
        _check_current(lease, event)
    except TorgError as error:
        if error.code in {"lease_unknown", "lease_stale"}:
            unit.send(node_id, Abandon(lease_id=event.lease_id))
        return _refused(event, error)
    if missing is not None:
        return _refused(event, missing)
    if refusal is None:
        try:
            await _apply(unit, lease, await job_row(unit, lease.job_id), event.body)
        except MovedMeanwhile:
            raise  # nothing is taken: the node says it again
        except (Invalid, Conflict) as error:
            raise _Refusal(error) from error
    lease.acknowledged = event.sequence
    unit.session.write(
        LeaseEventRow,
        lease_id=event.lease_id,
        sequence=event.sequence,
        received_at_ms=unit.now_ms,
        event=event.wire(),
        refusal=refusal.to_problem() if refusal is not None else None,
    )
    unit.wake(f"job:{lease.job_id}")
    return (
        Acknowledge(lease_id=event.lease_id, sequence=event.sequence) if refusal is None else _refused(event, refusal)
    )


async def _apply(unit: Unit, lease: LeaseRow, job: JobRow, body: LeaseEventBody) -> None:
    match body:
        case Accepted():
            await _on_accepted(unit, lease, job)
        case Declined():
            _check_unstarted(lease)
            lease.reported_at_ms = unit.now_ms
            await end_lease(unit, lease, job, EndReason.DECLINED, detail=body.detail, code=body.code)
        case Started():
            await _on_started(unit, lease, job, body)
        case TaskMoved():
            await on_task_moved(unit, lease, job, body)
        case CheckpointStored():
            await _on_checkpoint(unit, lease, job, body)
        case VolumesStored():
            await on_volumes_stored(unit, lease, job, body)
        case UsageClaimed():
            await on_usage(unit, lease, job, body)
        case Exited():
            await on_exited(unit, lease, body)
        case Reported():
            await on_reported(unit, lease, job, body)
        case Released():
            await on_released(unit, lease, job, body)
        case _:
            assert_never(body)


async def _on_accepted(unit: Unit, lease: LeaseRow, job: JobRow) -> None:
    if lease.state == LeaseState.STOPPING:
        return  # cancelled before it was accepted: the stop is on its way
    await move_lease(unit.session, lease, job, LeaseState.PREPARING, at_ms=unit.now_ms)


async def _on_started(unit: Unit, lease: LeaseRow, job: JobRow, body: Started) -> None:
    if lease.started_at_ms is not None:
        raise Conflict("this lease has started before", code="already_started", field="lease_id", value=lease.lease_id)
    node = await node_row(unit, lease.node_id)
    lease.started_at_ms = metering.seen_start_ms(
        claimed_start_ms=body.started_at_ms,
        received_ms=unit.now_ms,
        granted_ms=lease.granted_at_ms,
        connected_ms=node.connected_at_ms,
    )
    lease.claimed_started_at_ms = body.started_at_ms
    lease.image_digest, lease.executor, lease.isolation = body.image_digest, body.executor, body.isolation
    lease.gpu_uuids = list(body.gpu_uuids)
    await _begin_useful_time(unit, lease)
    _remember_warm(node, spec_of(job))
    if lease.state != LeaseState.STOPPING:
        await move_lease(unit.session, lease, job, LeaseState.RUNNING, at_ms=unit.now_ms)


async def _begin_useful_time(unit: Unit, lease: LeaseRow) -> None:
    """With the last of them to start: until then the others wait, which is of no use to the job."""
    leases = await attempt_of(unit, lease)
    starts = [each.started_at_ms for each in leases if each.started_at_ms is not None]
    if len(starts) == lease.size:
        for each in leases:
            each.useful_from_ms = max(starts)


def _remember_warm(node: NodeRow, spec: JobSpec) -> None:
    """What it fetched for this job is on its disk: the next job that wants it starts sooner there."""
    ran = [*spec.images] + ([spec.workspace.digest] if spec.workspace is not None else [])
    node.warm = (ran + [item for item in node.warm if item not in ran])[:WARM_ITEMS]


async def _on_checkpoint(unit: Unit, lease: LeaseRow, job: JobRow, body: CheckpointStored) -> None:
    spec, checkpoint = spec_of(job), body.checkpoint
    if not spec.checkpoint.enabled:
        raise Invalid(
            "this job writes no checkpoints", code="checkpoint_not_enabled", field="checkpoint", value=checkpoint.name
        )
    if lease.rank:
        raise Invalid(
            "the checkpoints of a gang are those of rank 0",
            code="checkpoint_not_rank_0",
            field="checkpoint",
            value=checkpoint.name,
        )
    if lease.started_at_ms is None:
        raise Conflict("this lease has not started", code="not_started", field="lease_id", value=lease.lease_id)
    seen_ms = unit.now_ms - lease.started_at_ms + unit.policy.usage_skew_ms
    lease.checkpoint_useful_ms = max(lease.checkpoint_useful_ms, min(checkpoint.useful_ms, max(0, seen_ms)))
    lease.checkpoint = job.checkpoint = checkpoint.wire()
    await _share_checkpoint(unit, lease)
    await use_blob(unit, checkpoint.blob.digest, job.id, client_may_read=spec.verify.policy == "none")
    data = {"name": checkpoint.name, "size_bytes": checkpoint.blob.size_bytes, "useful_ms": checkpoint.useful_ms}
    add_job_event(unit.session, job_id=job.id, lease_id=lease.id, kind="checkpoint", data=data, at_ms=unit.now_ms)


async def _share_checkpoint(unit: Unit, lease: LeaseRow) -> None:
    """A gang's checkpoint, which rank 0 writes, keeps what all of them did until then."""
    written_ms = (lease.started_at_ms or 0) + lease.checkpoint_useful_ms
    for each in await attempt_of(unit, lease):
        if each is not lease and each.started_at_ms is not None and each.left_at_ms is None:
            kept_ms = min(written_ms, each.exited_at_ms or written_ms) - each.started_at_ms
            each.checkpoint_useful_ms = max(each.checkpoint_useful_ms, kept_ms)


def _check_unstarted(lease: LeaseRow) -> None:
    if lease.started_at_ms is not None:
        raise Conflict(
            "a lease that has started cannot be declined",
            code="already_started",
            field="lease_id",
            value=lease.lease_id,
        )


async def _lease_of(unit: Unit, node_id: NodeId, event: LeaseEvent) -> LeaseRow:
    lease = await lease_to_change(unit, event.lease_id)
    if lease is None or lease.node_id != node_id:
        raise NotFound("no such lease of yours", code="lease_unknown", field="lease_id", value=event.lease_id)
    return lease


def _check_current(lease: LeaseRow, event: LeaseEvent) -> None:
    ended_by_us = lease.state not in LIVE_LEASE_STATES and lease.reported_at_ms is None
    if event.fence != lease.fence or ended_by_us:
        raise Conflict(
            "this lease is over, nothing further of it is paid",
            code="lease_stale",
            field="lease_id",
            value=event.lease_id,
            state=lease.state,
            reason=lease.reason,
        )
    if lease.state not in LIVE_LEASE_STATES:
        raise Conflict("this lease has reported", code="already_reported", field="sequence", value=event.sequence)
    if event.sequence != lease.acknowledged + 1:
        raise Conflict(
            "events of a lease come in order",
            code="event_out_of_order",
            field="sequence",
            value=event.sequence,
            hint=f"send {lease.acknowledged + 1} next",
            acknowledged=lease.acknowledged,
        )


def blobs_named_by(body: LeaseEventBody) -> list[tuple[str, BlobRef]]:
    """What the node says that it has stored, each with the name of its field."""
    if isinstance(body, CheckpointStored):
        return [("checkpoint.blob", body.checkpoint.blob)]
    if isinstance(body, VolumesStored):
        return [(f"volumes.{item.name}", item.blob) for item in body.volumes if item.blob is not None]
    if not isinstance(body, Reported):
        return []
    outputs = [(item.path, BlobRef(digest=item.digest, size_bytes=item.size_bytes)) for item in body.outputs]
    logs = {"stdout": body.stdout, "stderr": body.stderr, "progress": body.progress}
    of_tasks = [(f"task_logs.{log.task}", log.blob) for log in body.task_logs]
    return outputs + [(name, blob) for name, blob in logs.items() if blob is not None] + of_tasks


async def _missing_blob(market: Market, node_id: NodeId, body: LeaseEventBody) -> Invalid | None:
    for name, blob in blobs_named_by(body):
        try:
            await check_stored(market, node_id, blob, field=name)
        except Invalid as error:
            return error
    return None


def _refused(event: LeaseEvent, error: TorgError) -> Refused:
    return Refused(problem=error.to_problem(), lease_id=LeaseId(event.lease_id), sequence=event.sequence)
