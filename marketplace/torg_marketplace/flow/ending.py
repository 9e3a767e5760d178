"""How leases and jobs end: the one place where an end reason becomes states, money, exclusions and receipts.

end_lease   a lease stops living; with the last one of its attempt: usage up to its billing, another attempt or the job's end
conclude    a lease is decided: its money is final, its receipt is issued
end_queued  a job ends without a lease
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import bindparam, delete, select

from torg_marketplace.flow import earnings, vaults
from torg_marketplace.flow.blobs import unseal_outputs
from torg_marketplace.flow.leavers import goes_on_without
from torg_marketplace.flow.receipts import issue_receipt
from torg_marketplace.flow.rows import attempt_of, grant_of, has_live_lease, leases_of_job, node_row, spec_of, vote_on
from torg_marketplace.flow.segments import is_handed_over, look_first
from torg_marketplace.flow.slash import want_slash
from torg_marketplace.flow.slowness import refund_if_slow
from torg_marketplace.flow.stopping import stop_lease
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.usage import record_usage
from torg_marketplace.flow.volumes import end_of_attempt, free_volumes
from torg_marketplace.rules import declines
from torg_marketplace.rules.gangs import attempt_reason, leaver_billing, member_billing
from torg_marketplace.rules.outcomes import (
    Ending,
    JobHistory,
    ending,
    ending_of_look,
    is_fault_of_node,
    is_judged_by_itself,
    is_looked_at_first,
    is_paid_unseen,
)
from torg_marketplace.rules.quorum import goes_on, is_vote
from torg_marketplace.rules.reputation import counted, reputation_permille
from torg_marketplace.rules.verification import inconclusive, not_checked
from torg_marketplace.storage.events import add_node_event
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow, NodeRow
from torg_marketplace.storage.moves import move_job, move_lease
from torg_protocol.job_cost import verification_price
from torg_protocol.jobspec import VerifyQuorum, VerifyReplay
from torg_protocol.messages import Abandon
from torg_protocol.states import OPEN_JOB_STATES, OUTCOMES, EndReason, Exclusion, JobState, LeaseState
from torg_protocol.usage import VerdictSummary


async def end_lease(
    unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason, *, detail: str = "", code: str = ""
) -> None:
    """Ends a live lease, and with the last lease of an attempt the attempt: its job goes where the table of outcomes says, unless it has
    ended before (cancelled). Of several leases, one that did not complete takes the others with it, unless they can go on. `code`: the node's
    word for why it declined."""
    await _leave(unit, lease, job, reason, detail, code)
    leases = await attempt_of(unit, lease)
    if reason is not EndReason.COMPLETED and not await goes_on_without(unit, lease, job, reason, leases):
        await _dissolve(unit, job, leases)
    if all(each.ended_at_ms is not None for each in leases):
        await _end_attempt(unit, job, leases)
    unit.wake("match")
    unit.wake(f"job:{job.job_id}")


async def _leave(unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason, detail: str, code: str = "") -> None:
    """Its node has nothing to do with it any more, but for its last word."""
    unit.later(_FREE_UNITS, {"of_lease": lease.lease_id})
    to = OUTCOMES[reason].lease
    await move_lease(unit.session, lease, job, to, at_ms=unit.now_ms, reason=reason, detail=detail)
    _trace(unit, lease, reason)
    match OUTCOMES[reason].excludes:
        case Exclusion.NO:
            pass
        case Exclusion.PASSING:
            _pause(unit, job, lease.node_id, code)
        case Exclusion.LASTING:
            _exclude(job, lease.node_id)
        case _:
            assert_never(OUTCOMES[reason].excludes)
    await _count(unit, lease, job, reason)


_FREE_UNITS = delete(AllocationRow).where(AllocationRow.lease_id == bindparam("of_lease"))


async def _dissolve(unit: Unit, job: JobRow, leases: Sequence[LeaseRow]) -> None:
    """Members that run stop with grace, for a last checkpoint; those that have not started are given up at once."""
    for each in leases:
        if each.ended_at_ms is not None or (each.state == LeaseState.STOPPING and each.started_at_ms is not None):
            continue
        if each.started_at_ms is not None:
            await stop_lease(unit, each, job, EndReason.GANG_ENDED)
        else:
            await _leave(unit, each, job, EndReason.GANG_ENDED, "another node of its gang could not go on")
            unit.send(each.node, Abandon(lease_id=each.id))


async def _end_attempt(unit: Unit, job: JobRow, leases: Sequence[LeaseRow]) -> None:
    """All of its leases have ended: usage up to their billing, and another attempt or the job's end."""
    to_the_end = [each for each in leases if each.left_at_ms is None]
    in_order = sorted(to_the_end, key=lambda each: (each.ended_at_ms or 0, each.rank))
    cancelled = job.cancel_requested_at_ms is not None
    reason = attempt_reason([_reason_of(each) for each in in_order], cancel_requested=cancelled)
    decision = _decide(job, reason, was_extended=await _was_extended(unit, leases[0], job, reason))
    for each in leases:
        billing = member_billing if each.left_at_ms is None else leaver_billing
        await record_usage(unit, each, job, billing(_reason_of(each), reason), final=True)
    await end_of_attempt(unit, job, leases[0].fence, reason)
    _remember(job, decision)
    job.preemptions += reason is EndReason.PREEMPTED
    if decision.job is JobState.VERIFYING and job.state in OPEN_JOB_STATES:
        await _ask_verdict(unit, leases[0], job)
        return
    cause = _cause(in_order, reason)
    if await _waits_for_look(unit, leases[0], job, decision):
        detail = f"{_LOOK}; {cause}" if cause else _LOOK
        await move_job(unit.session, job, JobState.VERIFYING, at_ms=unit.now_ms, reason=reason, detail=detail)
        return
    for each in leases:
        await _hold_or_conclude(unit, each, job, decision.job)
    await _move_on(unit, job, decision, reason, decision.detail or cause)


_LOOK = "its checkpoints are looked at before another node goes on from them"
_UNSEEN = "it led to nothing that could be verified: nobody is charged for it"


async def _waits_for_look(unit: Unit, lease: LeaseRow, job: JobRow, decision: Ending) -> bool:
    policy = spec_of(job).verify
    first = is_looked_at_first(policy.policy, decision.job, has_checkpoint=lease.checkpoint is not None)
    if not first or not isinstance(policy, VerifyReplay) or job.state not in OPEN_JOB_STATES:
        return False
    return await look_first(unit, lease, job, policy)


async def _hold_or_conclude(unit: Unit, lease: LeaseRow, job: JobRow, to: JobState) -> None:
    """Of a lease that no verdict of the job's result is waited for; `to`: where its job goes."""
    policy = spec_of(job).verify.policy
    is_paid = is_paid_unseen(policy, cancel_requested=job.cancel_requested_at_ms is not None)
    if lease.state == LeaseState.REPORTED:
        await _end_unseen(unit, lease, job, paid=is_paid)
    if _is_held_back(lease, job, to):
        price = verification_price(spec_of(job), lease.amount)
        await earnings.keep_pending(unit, lease_id=lease.id, verification=price)
    elif not is_paid:
        await conclude(unit, lease, job, inconclusive(policy, "", _UNSEEN), passed=False)
    else:
        paid = job.checks_job is None  # a replay that came to nothing is no use to anybody
        await conclude(unit, lease, job, _verdict_so_far(lease, policy), passed=paid)


def _reason_of(lease: LeaseRow) -> EndReason:
    return lease.ended_for or EndReason.GANG_ENDED


def _cause(leases: Sequence[LeaseRow], reason: EndReason) -> str:
    """Details of the first lease that ended for this reason, and of several which one it was."""
    cause = next((each for each in leases if each.ended_for is reason), leases[0])
    return cause.detail if cause.size == 1 else f"rank {cause.rank} on {cause.node_id}: {cause.detail or reason}"


async def decide_reported(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    """Applies a verdict to a lease, and to all others of its attempt, whose job is VERIFYING: passed and not_checked pay, failed does not and
    tries elsewhere, inconclusive neither pays nor blames. One that was over before its job has handed its checkpoints over: see `_decide_handed_over`."""
    unit.trace("verify", job.job_id, lease.reported_at_ms, lease_id=lease.lease_id, verdict=verdict.result)
    if is_handed_over(lease, job):
        await _decide_handed_over(unit, lease, job, verdict)
    else:
        await _decide_result(unit, lease, job, verdict)
    unit.wake("match")
    unit.wake(f"job:{job.job_id}")


async def _decide_result(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    match verdict.result:
        case "passed" | "not_checked":
            for each in await attempt_of(unit, lease):
                if each.state == LeaseState.REPORTED:  # and not lost on the way, while the others went on
                    await move_lease(unit.session, each, job, LeaseState.VERIFIED, at_ms=unit.now_ms)
                await conclude(unit, each, job, verdict, passed=True, verified=each.left_at_ms is None)
            await move_job(unit.session, job, JobState.SUCCEEDED, at_ms=unit.now_ms, reason=EndReason.COMPLETED)
            await close_if_over(unit, job)
        case "failed":
            await _reject(unit, lease, job, verdict)
        case _:
            for each in await attempt_of(unit, lease):
                if each.state != LeaseState.INCONCLUSIVE:
                    await move_lease(unit.session, each, job, LeaseState.INCONCLUSIVE, at_ms=unit.now_ms)
                await conclude(unit, each, job, verdict, passed=False)
            detail = f"the marketplace could not verify the work, nobody is charged for it: {verdict.detail}"
            await move_job(unit.session, job, JobState.FAILED, at_ms=unit.now_ms, detail=detail)
            await close_if_over(unit, job)


async def _decide_handed_over(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    """What is right is gone on from, and paid with the job's result. What is not, or cannot be told, nobody is charged for, and nobody goes on
    from: the job is again where the lease found it."""
    ended_for, failed = EndReason(lease.reason or EndReason.NODE_LOST), verdict.result == "failed"
    decision = ending_of_look(ended_for, spec_of(job).retry, _history(job), failed=failed)
    if verdict.result in ("passed", "not_checked"):
        lease.verdict, lease.stake = verdict.wire(), 0
        await _hold_or_conclude(unit, lease, job, decision.job)
    else:
        job.checkpoint = _began_from(lease)
        if failed:
            await _leave(unit, lease, job, EndReason.VERIFICATION_REJECTED, verdict.detail)
            await want_slash(unit, lease, job, verdict)
        elif lease.state == LeaseState.REPORTED:
            await move_lease(unit.session, lease, job, LeaseState.INCONCLUSIVE, at_ms=unit.now_ms)
        await conclude(unit, lease, job, verdict, passed=False)
    _remember(job, decision)
    reason = EndReason.VERIFICATION_REJECTED if failed else ended_for
    await _move_on(unit, job, decision, reason, decision.detail or (verdict.detail if failed else lease.detail))


async def reject_replica(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    """One of a quorum that the others contradict: as after any failed audit, but the job does not go back into the queue."""
    await _leave(unit, lease, job, EndReason.VERIFICATION_REJECTED, verdict.detail)
    _remember(job, _decide(job, EndReason.VERIFICATION_REJECTED))
    await want_slash(unit, lease, job, verdict)
    await conclude(unit, lease, job, verdict, passed=False)


async def conclude(
    unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary, *, passed: bool, verified: bool = False
) -> None:
    """Makes a lease's money final and issues its receipt. What did not pass is not billed; verification is where the work went through it,
    drawn for an audit or not."""
    is_priced = passed and verified and job.checks_job is None
    price = verification_price(spec_of(job), lease.amount) if is_priced else 0
    await earnings.decide_lease(unit, lease_id=lease.id, passed=passed, verification=price)
    lease.verification_amount = price
    lease.amount += price
    if not passed:
        lease.unbilled_ms += lease.billed_ms
        lease.billed_ms = lease.amount = 0
    lease.verdict = verdict.wire()
    lease.decided_at_ms = unit.now_ms
    await issue_receipt(unit, lease, job)
    await refund_if_slow(unit, lease)


async def end_queued(unit: Unit, job: JobRow, reason: EndReason, detail: str = "") -> None:
    """Ends a job that has no live lease: cancelled, past its queue deadline, or out of time or money."""
    match reason:
        case EndReason.CANCELLED:
            to = JobState.CANCELLED
        case EndReason.QUEUE_DEADLINE:
            to = JobState.EXPIRED
        case _:
            to = JobState.FAILED
    await move_job(unit.session, job, to, at_ms=unit.now_ms, reason=reason, detail=detail)
    await close_if_over(unit, job)
    unit.wake(f"job:{job.job_id}")


async def close_if_over(unit: Unit, job: JobRow) -> None:
    """Releases the hold once the job has ended and no lease of it lives; decides what was held back until then."""
    if job.state in OPEN_JOB_STATES or job.closed_at_ms is not None or await has_live_lease(unit, job):
        return
    await _release_held_back(unit, job, passed=job.state in (JobState.SUCCEEDED, JobState.CANCELLED))
    await vaults.close_job(unit, job_id=job.id)
    await free_volumes(unit, job)
    job.closed_at_ms = unit.now_ms


def _trace(unit: Unit, lease: LeaseRow, reason: EndReason) -> None:
    lease_id, job_id = lease.lease_id, lease.job_id
    until_ms = lease.started_at_ms if lease.started_at_ms is not None else unit.now_ms
    unit.trace("prepare", job_id, lease.granted_at_ms, end_ms=until_ms, lease_id=lease_id)
    unit.trace("run", job_id, lease.started_at_ms, end_ms=lease.exited_at_ms, lease_id=lease_id, reason=reason)
    unit.trace("report", job_id, lease.exited_at_ms, lease_id=lease_id)


async def _was_extended(unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason) -> bool:
    """Whether the job may last longer than the lease that ends now, with the time of earlier ones."""
    spec = spec_of(job)
    if reason is not EndReason.MAX_DURATION or job.max_duration_ms is None:
        return False
    if not spec.checkpoint.enabled or spec.gang is not None:
        return False
    earlier_ms = sum(other.billed_ms for other in await leases_of_job(unit, job.job_id) if other is not lease)
    return spec.verify.policy == "none" and earlier_ms + lease.max_duration_ms < job.max_duration_ms


def _decide(job: JobRow, reason: EndReason, *, was_extended: bool = False) -> Ending:
    return ending(reason, spec_of(job).retry, _history(job, was_extended=was_extended), spec_of(job).verify.policy)


def _history(job: JobRow, *, was_extended: bool = False) -> JobHistory:
    return JobHistory(job.attempts, job.own_failures, job.cancel_requested_at_ms is not None, was_extended)


def _began_from(lease: LeaseRow) -> dict[str, Any] | None:
    checkpoint = grant_of(lease).resume_from
    return None if checkpoint is None else checkpoint.wire()


def _remember(job: JobRow, decision: Ending) -> None:
    job.attempts += decision.counts
    job.own_failures += decision.own_failure
    if decision.drops_checkpoint:
        job.checkpoint = None


def _pause(unit: Unit, job: JobRow, node_id: str, code: str) -> None:
    times = int(job.paused_nodes.get(node_id, {}).get("times", 0))
    pause_ms = declines.pause_ms(code, times)
    if pause_ms is None:
        _exclude(job, node_id)
    else:
        job.paused_nodes = {**job.paused_nodes, node_id: {"until_ms": unit.now_ms + pause_ms, "times": times + 1}}


def _exclude(job: JobRow, node_id: str) -> None:
    if node_id not in job.excluded_nodes:
        job.excluded_nodes = [*job.excluded_nodes, node_id]


async def _count(unit: Unit, lease: LeaseRow, job: JobRow, reason: EndReason) -> None:
    """A lease that was kept or broken counts for its node's reputation; one that nobody can tell about is neither."""
    has_reported = OUTCOMES[reason].lease is LeaseState.REPORTED
    cancelled = job.cancel_requested_at_ms is not None
    is_worth = reason is EndReason.COMPLETED or is_paid_unseen(spec_of(job).verify.policy, cancel_requested=cancelled)
    was_kept = has_reported and is_worth
    unit.touch(lease.node, only_room=has_reported)
    if was_kept or is_fault_of_node(reason):
        node = await node_row(unit, lease.node_id)
        was = reputation_permille(node.leases_kept, node.leases_broken)
        node.leases_kept, node.leases_broken = counted(node.leases_kept, node.leases_broken, was_kept=was_kept)
        node.clean_leases = 0 if reason is EndReason.VERIFICATION_REJECTED else node.clean_leases + was_kept
        now = reputation_permille(node.leases_kept, node.leases_broken)
        because = {"reputation": now, "was": was, "because": reason, "lease_id": lease.lease_id}
        add_node_event(unit.session, node_id=lease.node, data=because, at_ms=unit.now_ms)


def _is_held_back(lease: LeaseRow, job: JobRow, to: JobState) -> bool:
    """Seconds up to a checkpoint of a job whose result will be measured wait for that verdict: a node must not be paid for
    a checkpoint that leads nowhere."""
    return (
        spec_of(job).verify.policy != "none"
        and to is JobState.QUEUED
        and OUTCOMES[_reason_of(lease)].lease is not LeaseState.REPORTED
        and lease.amount > 0
    )


async def _ask_verdict(unit: Unit, lease: LeaseRow, job: JobRow) -> None:
    policy = spec_of(job).verify
    if isinstance(policy, VerifyQuorum) and await _next_replica(unit, lease, job, policy.replicas):
        return
    await move_job(unit.session, job, JobState.VERIFYING, at_ms=unit.now_ms, reason=EndReason.COMPLETED)
    if spec_of(job).verify.policy == "none":
        await decide_reported(unit, lease, job, not_checked("none"))
        return
    lease.verify_at_ms = unit.now_ms
    lease.verify_deadline_ms = unit.now_ms + unit.policy.verification_window_s * 1000
    unit.wake("verify")


async def _next_replica(unit: Unit, lease: LeaseRow, job: JobRow, replicas: int) -> bool:
    """Whether more of a quorum's replicas must run before it can be decided; then the job is queued for nodes of other owners."""
    votes = [vote_on(each) for each in await leases_of_job(unit, job.job_id) if is_vote(each.state)]
    if not goes_on(votes, replicas):
        return False
    if job.cancel_requested_at_ms is not None:  # this replica was ready before the order to stop reached it
        await end_queued(unit, job, EndReason.CANCELLED)
        return True
    same_owner = select(NodeRow.node_id).where(NodeRow.offer["payout_address"].as_string() == lease.payout_address)
    owned = {lease.node_id, *(await unit.session.scalars(same_owner)).all()}
    job.excluded_nodes = sorted({*job.excluded_nodes, *owned})
    job.queue_deadline_ms = unit.now_ms + spec_of(job).limits.queue_timeout
    await move_job(
        unit.session, job, JobState.QUEUED, at_ms=unit.now_ms, detail=f"{len(votes)} of {replicas} replicas are in"
    )
    return True


async def _reject(unit: Unit, lease: LeaseRow, job: JobRow, verdict: VerdictSummary) -> None:
    reason = EndReason.VERIFICATION_REJECTED
    decision = _decide(job, reason)
    for each in await attempt_of(unit, lease):
        await _leave(unit, each, job, reason, verdict.detail)
        await want_slash(unit, each, job, verdict)
        await conclude(unit, each, job, verdict, passed=False)
    _remember(job, decision)
    if is_judged_by_itself(spec_of(job).verify.policy):
        job.checkpoint = _began_from(lease)  # others made it, who answer for it themselves
    else:
        await _release_held_back(unit, job, passed=False)
    await _move_on(unit, job, decision, reason, decision.detail or verdict.detail)


async def _move_on(unit: Unit, job: JobRow, decision: Ending, reason: EndReason, detail: str) -> None:
    if job.state in OPEN_JOB_STATES:
        if decision.job is JobState.QUEUED and decision.renews_queue_timeout:
            job.queue_deadline_ms = unit.now_ms + spec_of(job).limits.queue_timeout
        await move_job(unit.session, job, decision.job, at_ms=unit.now_ms, reason=reason, detail=detail)
    await close_if_over(unit, job)


async def _release_held_back(unit: Unit, job: JobRow, *, passed: bool) -> None:
    policy = spec_of(job).verify.policy
    if policy == "none":
        return  # nothing is ever held back then
    for lease in await leases_of_job(unit, job.job_id):
        if lease.decided_at_ms is None and lease.ended_at_ms is not None:
            paid = passed
            if lease.state == LeaseState.REPORTED:  # a replica of a quorum that never came about
                paid = job.reason == EndReason.CANCELLED  # its client's own choice
                await _end_unseen(unit, lease, job, paid=paid)
            verified = job.state == JobState.SUCCEEDED
            await conclude(unit, lease, job, _verdict_so_far(lease, policy), passed=paid, verified=verified)


async def _end_unseen(unit: Unit, lease: LeaseRow, job: JobRow, *, paid: bool) -> None:
    """Of a report that no verdict is waited for any more. Who pays for it may read it."""
    to = LeaseState.VERIFIED if paid else LeaseState.INCONCLUSIVE
    await move_lease(unit.session, lease, job, to, at_ms=unit.now_ms)
    if paid:
        await unseal_outputs(unit, lease, job)


def _verdict_so_far(lease: LeaseRow, policy: str) -> VerdictSummary:
    """On what it has handed over, if that was looked at."""
    return not_checked(policy) if lease.verdict is None else VerdictSummary.model_validate(lease.verdict)
