"""Report: a node says how a lease ended and hands over what it made. From here on it may vanish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from torg_marketplace.flow.blobs import use_blob
from torg_marketplace.flow.ending import end_lease
from torg_marketplace.flow.rows import attempt_of, leases_of_job, node_row, spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.usage import meter_of
from torg_marketplace.flow.volumes import lacking_volumes
from torg_marketplace.rules import metering
from torg_marketplace.rules.leases import Ran, believed_reason
from torg_marketplace.rules.quorum import is_vote
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.messages import Exited, Released, Reported
from torg_protocol.money import cost
from torg_protocol.states import OUTCOMES, EndReason, LeaseState
from torg_protocol.usage import OutputFile

# What a node may say with a report, and what without one. The others are the marketplace's to say.
REPORTABLE = frozenset(reason for reason, outcome in OUTCOMES.items() if outcome.lease is LeaseState.REPORTED)
RELEASABLE = frozenset(
    {reason for reason, outcome in OUTCOMES.items() if outcome.lease is LeaseState.RELEASED} | {EndReason.CANCELLED}
) - {EndReason.QUEUE_DEADLINE}
BELIEF_SLACK_PERMILLE = 50  # clocks of two machines differ, and a stop takes a moment


async def on_exited(unit: Unit, lease: LeaseRow, body: Exited) -> None:
    """The container ended: useful time ends here."""
    if lease.started_at_ms is None:
        raise Conflict("this lease has not started", code="not_started", field="lease_id", value=lease.lease_id)
    if body.finished_at_ms < body.started_at_ms:
        raise Invalid(
            "it ended before it started", code="times_invalid", field="finished_at_ms", value=body.finished_at_ms
        )
    node = await node_row(unit, lease.node_id)
    lease.exited_at_ms = metering.seen_start_ms(
        claimed_start_ms=body.finished_at_ms,
        received_ms=unit.now_ms,
        granted_ms=lease.started_at_ms,
        connected_ms=node.connected_at_ms,
    )
    lease.claimed_ms = max(lease.claimed_ms, body.finished_at_ms - body.started_at_ms)
    lease.exit_code = body.exit_code
    lease.detail = body.detail[:2_000]
    lease.use = body.use.wire() if body.use is not None else None


async def on_reported(unit: Unit, lease: LeaseRow, job: JobRow, body: Reported) -> None:
    """All blobs are stored (checked before this transaction): the lease ends for the reason given, if it can be believed."""
    if body.reason not in REPORTABLE | RELEASABLE:
        raise Invalid(
            "a node cannot end a lease for this reason", code="reason_invalid", field="reason", value=body.reason
        )
    _check_paths(body.outputs)
    lease.reported_at_ms = unit.now_ms
    if lease.started_at_ms is not None and lease.exited_at_ms is None:
        lease.exited_at_ms = unit.now_ms
    lease.exit_code = body.exit_code
    lease.outputs = [item.wire() for item in body.outputs]
    await _keep_blobs(unit, lease, job, body)
    reason, detail = body.reason, lease.detail
    if reason is EndReason.COMPLETED:
        missing = _missing_outputs(lease, job, body) + await lacking_volumes(unit, lease, job)
        if missing:
            reason, detail = EndReason.OUTPUT_MISSING, "missing: " + ", ".join(missing)
    await _end(unit, lease, job, reason, detail)


async def on_released(unit: Unit, lease: LeaseRow, job: JobRow, body: Released) -> None:
    """The lease ends without a result."""
    lease.reported_at_ms = unit.now_ms
    if body.reason not in RELEASABLE:
        raise Invalid(
            "a node cannot release a lease for this reason", code="reason_invalid", field="reason", value=body.reason
        )
    await _end(unit, lease, job, body.reason, body.detail)


async def _end(unit: Unit, lease: LeaseRow, job: JobRow, said: EndReason, detail: str) -> None:
    meter = meter_of(unit, lease, job)
    most_ms = (min(meter.claimed_ms, meter.seen_ms + meter.skew_ms)) * (1000 + BELIEF_SLACK_PERMILLE) // 1000
    ran = Ran(
        started=lease.started_at_ms is not None,
        ran_ms=most_ms,
        max_duration_ms=lease.max_duration_ms,
        amount=cost(lease.price_per_gpu_hour, lease.billable_gpus, most_ms),
        max_amount=lease.max_amount,
        asked_to_stop_for=EndReason(lease.stop_reason) if lease.stop_reason is not None else None,
        cancel_requested=job.cancel_requested_at_ms is not None,
        asked_to_make_room=lease.preempted_for is not None,
        others_voted=any(is_vote(each.state) for each in await _replicas_before(unit, lease, job)),
        gang_ended=any(
            each.ended_for not in {None, EndReason.COMPLETED} and each.left_at_ms is None
            for each in await attempt_of(unit, lease)
        ),
    )
    reason = believed_reason(said, ran)
    if reason is not said:
        detail = f"the node said {said}, which what the marketplace saw contradicts; {detail}"
    await end_lease(unit, lease, job, reason, detail=detail)


async def _replicas_before(unit: Unit, lease: LeaseRow, job: JobRow) -> Sequence[LeaseRow]:
    if spec_of(job).replicas == 1:
        return ()
    return [each for each in await leases_of_job(unit, job.job_id) if each.lease_id != lease.lease_id]


def _check_paths(outputs: tuple[OutputFile, ...]) -> None:
    for item in outputs:
        path = PurePosixPath(item.path)
        if path.is_absolute() or ".." in path.parts or "\0" in item.path or not path.parts:
            raise Invalid("an output's path must be relative", code="path_unsafe", field="outputs", value=item.path)
    if len({item.path for item in outputs}) != len(outputs):
        raise Invalid("an output is listed twice", code="outputs_invalid", field="outputs")


def _missing_outputs(lease: LeaseRow, job: JobRow, body: Reported) -> list[str]:
    """Declared outputs (files, or directories with files in them) that are not there. Of a gang rank 0 hands them over."""
    if lease.rank:
        return []
    there = {item.path for item in body.outputs}
    return [
        path
        for path in spec_of(job).outputs
        if path not in there and not any(name.startswith(path.rstrip("/") + "/") for name in there)
    ]


async def _keep_blobs(unit: Unit, lease: LeaseRow, job: JobRow, body: Reported) -> None:
    """Logs are the client's at once. Outputs too, unless a verdict decides first whether they are paid for."""
    logs = {"stdout": body.stdout, "stderr": body.stderr, "progress": body.progress}
    logs |= {f"{log.task}.{log.run}/{log.stream}": log.blob for log in body.task_logs}
    lease.logs = {name: blob.model_dump(mode="json") for name, blob in logs.items() if blob is not None}
    for blob in logs.values():
        if blob is not None:
            await use_blob(unit, blob.digest, job.id, client_may_read=True)
    sealed = spec_of(job).verify.policy != "none" and body.reason is not EndReason.CANCELLED
    for item in body.outputs:
        await use_blob(unit, item.digest, job.id, client_may_read=not sealed)
