"""Quorum: once enough replicas are in, those that agree are paid, other results are failed audits, and the client gets what the most made."""

from __future__ import annotations

from torg_marketplace.flow.blobs import unseal_outputs
from torg_marketplace.flow.collateral import put_stake_behind
from torg_marketplace.flow.ending import close_if_over, conclude, reject_replica
from torg_marketplace.flow.rows import leases_of_job, spec_of, vote_on
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.outcomes import is_own_failure
from torg_marketplace.rules.quorum import is_vote, majority, verdict_on
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.moves import move_job, move_lease
from torg_protocol.states import EndReason, JobState, LeaseState


async def decide_quorum(unit: Unit, job: JobRow) -> None:
    """Of a job that is VERIFYING. Without a majority nobody is paid and nobody is blamed."""
    replicas = spec_of(job).replicas
    leases = [lease for lease in await leases_of_job(unit, job.job_id) if is_vote(lease.state)]
    votes = [vote_on(lease) for lease in leases]
    by_vote = dict(zip(votes, leases, strict=True))
    failures = {vote for vote, lease in by_vote.items() if is_own_failure(lease.ended_for)}
    for lease, vote in zip(leases, votes, strict=True):
        verdict = verdict_on(vote, votes, replicas, failures)
        lease.verify_at_ms = None
        match verdict.result:
            case "passed":
                await unseal_outputs(unit, lease, job)
                await move_lease(unit.session, lease, job, LeaseState.VERIFIED, at_ms=unit.now_ms)
                await conclude(unit, lease, job, verdict, passed=True)
            case "failed":
                await put_stake_behind(unit, lease, job)
                await reject_replica(unit, lease, job, verdict)
            case _:
                await move_lease(unit.session, lease, job, LeaseState.INCONCLUSIVE, at_ms=unit.now_ms)
                await conclude(unit, lease, job, verdict, passed=False)
    decided = majority(votes, replicas)
    if decided is None:
        detail = f"no {replicas // 2 + 1} of {replicas} replicas agree: nobody is charged"
        await move_job(unit.session, job, JobState.FAILED, at_ms=unit.now_ms, detail=detail)
    elif decided in failures:
        lease = by_vote[decided]
        await move_job(
            unit.session, job, JobState.FAILED, at_ms=unit.now_ms, reason=lease.ended_for, detail=lease.detail
        )
    else:
        await move_job(unit.session, job, JobState.SUCCEEDED, at_ms=unit.now_ms, reason=EndReason.COMPLETED)
    await close_if_over(unit, job)
    unit.wake("match")
    unit.wake(f"job:{job.job_id}")
