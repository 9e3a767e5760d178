"""Extend: a job may last longer than its spec said, under a larger cap of its client.

QUEUED      a larger limit, for its next attempt already
LEASED      the lease that runs ends at its own limit, as its node agreed to; then the job goes on from its newest checkpoint, in another
            lease, with what was added (docs/adr/0020). So it needs checkpoints, and nothing to verify: a job whose result is measured is
            measured at the end of the lease that made it
else        too late
"""

from __future__ import annotations

from typing import assert_never

from torg_marketplace.flow import vaults
from torg_marketplace.flow.credit import hold_more_credit, sign_credit_cap
from torg_marketplace.flow.quotas import check_spend, note_extension
from torg_marketplace.flow.rows import job_of, max_duration_ms_of, spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.views import view_of
from torg_marketplace.rules import pricing
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.storage.models import JobRow
from torg_protocol.api import ExtendRequest, JobView
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import AccountId, JobId, VaultAddress
from torg_protocol.jobspec import JobSpec
from torg_protocol.states import EndReason, JobState


async def extend(unit: Unit, account: AccountId, job_id: JobId, request: ExtendRequest) -> JobView:
    """Safe to repeat: a job that may last so long already stays as it is. Raises NotFound job_unknown; Conflict job_ended,
    already_reported, job_cancelled, extend_needs_checkpoints, extend_gang, extend_verified, extend_on_credit; Invalid cap_missing,
    cap_other_vault; and what admitting a job raises (cap_stale, vault_underfunded, credit_exhausted, ...). Then nothing has changed."""
    job = await job_of(unit, account, job_id)
    await unit.session.refresh(job, with_for_update=True)  # of two at once the second sees what the first did
    if request.max_duration <= max_duration_ms_of(job) and job.ended_at_ms is None:
        return await view_of(unit, job)
    spec = spec_of(job)
    _check_state(job, spec)
    more = _further_amount(unit, job, spec, request.max_duration)
    await check_spend(unit, account, more)
    cap = await _hold(unit, job, spec, request, more)
    job.max_duration_ms = request.max_duration
    job.max_amount += more
    note_extension(unit, job, request.max_duration, more)
    job.cap, job.cap_from_ms = cap.wire(), unit.now_ms
    unit.market.book.waiting.pop(job.job_id, None)  # it is worked out anew what it asks for
    unit.wake("match")
    unit.wake(f"job:{job.job_id}")
    return await view_of(unit, job)


def _check_state(job: JobRow, spec: JobSpec) -> None:
    state = JobState(job.state)
    match state:
        case JobState.QUEUED:
            pass
        case JobState.LEASED:
            _check_can_go_on(job, spec)
        case JobState.VERIFYING if job.reason != EndReason.COMPLETED:
            pass  # it will be queued again
        case JobState.VERIFYING:
            raise Conflict(
                "the work is done and being verified", code="already_reported", field="job_id", value=job.job_id
            )
        case JobState.SUCCEEDED | JobState.FAILED | JobState.CANCELLED | JobState.EXPIRED | JobState.STOPPED:
            raise Conflict(
                f"the job has ended: {state}",
                code="job_ended",
                field="job_id",
                value=job.job_id,
                hint="submit it again: torg retry",
                state=state,
            )
        case _:
            assert_never(state)


def _check_can_go_on(job: JobRow, spec: JobSpec) -> None:
    if job.cancel_requested_at_ms is not None:
        raise Conflict("the job is being cancelled", code="job_cancelled", field="job_id", value=job.job_id)
    if not spec.checkpoint.enabled:
        raise Conflict(
            "a running job goes on from a checkpoint after its time, and this one writes none",
            code="extend_needs_checkpoints",
            field="job_id",
            value=job.job_id,
            hint="write checkpoint: {enabled: true} in job files that may need longer; a queued job can be extended without",
        )
    if spec.gang is not None:
        raise Conflict(
            "a job on several nodes can be extended only while it is queued",
            code="extend_gang",
            field="job_id",
            value=job.job_id,
        )
    if spec.verify.policy != "none":
        raise Conflict(
            "a job whose result is verified can be extended only while it is queued",
            code="extend_verified",
            field="job_id",
            value=job.job_id,
        )


def _further_amount(unit: Unit, job: JobRow, spec: JobSpec, max_duration_ms: int) -> int:
    """Nothing when the client's own max_cost is reached already."""
    most = pricing.max_amount(spec, job.price_ceiling, unit.policy.decimals, max_duration_ms=max_duration_ms)
    return max(0, most - job.max_amount)


async def _hold(unit: Unit, job: JobRow, spec: JobSpec, request: ExtendRequest, more: int) -> SignedCap:
    """Under which cap so much more is held."""
    lease_end_s = latest_lease_end_ms(spec, unit.now_ms, request.max_duration) // 1000
    cap, payer = request.cap, AccountId(job.client)
    if await vaults.is_on_credit(unit, job.id):
        _check_no_cap(job, cap)
        cap = await sign_credit_cap(unit, more, lease_end_s, of_vault=VaultAddress(job.vault))
        await hold_more_credit(unit, job.id, more)
        payer = AccountId(cap.signer)
    if cap is None:
        raise Invalid(
            "a larger cap of the vault that pays for this job is needed",
            code="cap_missing",
            field="cap",
            hint=f"sign one for {job.vault}: torg extend does",
        )
    if cap.vault != job.vault:
        raise Invalid(
            "the cap is of another vault than the one that pays for this job",
            code="cap_other_vault",
            field="cap.vault",
            value=cap.vault,
            hint=f"sign it for {job.vault}",
        )
    await vaults.admit_more(unit, job_id=job.id, account=payer, cap=cap, more=more, lease_end_latest_s=lease_end_s)
    return cap


def _check_no_cap(job: JobRow, cap: SignedCap | None) -> None:
    if cap is not None:
        raise Conflict(
            "an API key's credit pays for this job, not a vault of yours",
            code="extend_on_credit",
            field="cap",
            value=cap.vault,
            hint=f"leave the cap out: the credit of job {job.job_id} holds more",
        )
