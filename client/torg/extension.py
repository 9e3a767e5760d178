"""Lets an open job last longer, under a larger cap that the client's own journal justifies.

What the job may cost then is worked out here, from the price that no attempt of it may exceed: the marketplace is told, not asked. The
journal counts with it before anything is sent, and goes back only when the marketplace has refused.
"""

from __future__ import annotations

from torg.submission import Submission, cap_lifetime_s
from torg.transport import Transport
from torg_protocol.api import JobView
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError, Unavailable
from torg_protocol.job_cost import largest_cost
from torg_protocol.jobspec import MAX_DURATION_MS
from torg_protocol.money import format_amount
from torg_protocol.quantities import as_written


async def extend(submission: Submission, job: JobView, by_ms: int) -> JobView:
    """Safe to repeat with the same view of the job: it names how long the job may last in all. Raises what the marketplace answers
    (extend_needs_checkpoints, vault_underfunded, job_ended, ...); NotFound `job_not_in_journal`; Invalid `duration_invalid`."""
    max_duration_ms = _longer(job, by_ms)
    max_amount = _max_amount(job, max_duration_ms, submission.decimals)
    before = submission.journal.raise_maximum(job.job_id, max_amount)
    if before is None:
        raise NotFound(
            "this computer's journal does not count with that job, so it cannot sign for it",
            code="job_not_in_journal",
            field="job",
            value=job.job_id,
            hint="extend it where it was submitted, or accept it here first: torg vault adopt",
        )
    longer = job.spec.model_copy(
        update={"limits": job.spec.limits.model_copy(update={"max_duration": max_duration_ms})}
    )
    try:
        return await submission.post_extension(job.job_id, max_duration_ms, cap_lifetime_s(longer, submission.market))
    except TorgError as error:
        if not isinstance(error, Unavailable) and 400 <= error.status < 500:
            submission.journal.lower_maximum(job.job_id, before)
            missing = error.data.get("missing")
            if error.code == "vault_underfunded" and isinstance(missing, int):
                more = format_amount(missing, submission.decimals)
                error.hint = f"{more} more is needed: torg vault deposit {more}"
        raise


async def extend_on_credit(transport: Transport, job: JobView, by_ms: int) -> JobView:
    """The same for a job of an API key: its credit holds more. Raises Conflict (credit_exhausted, spend_cap_reached, ...)."""
    body = {"max_duration": f"{_longer(job, by_ms)}ms"}
    return await transport.ask(JobView, "POST", f"/v1/jobs/{job.job_id}/extend", body=body, safe_to_repeat=True)


def _longer(job: JobView, by_ms: int) -> int:
    if job.ended_at_ms is not None:
        raise Conflict(
            f"the job has ended: {job.state}",
            code="job_ended",
            field="job",
            value=job.job_id,
            hint="submit it again: torg retry",
        )
    max_duration_ms = job.max_duration_ms + by_ms
    if by_ms <= 0 or max_duration_ms > MAX_DURATION_MS:
        raise Invalid(
            f"a job may last {MAX_DURATION_MS // 86_400_000} days at most, this one would last {as_written(max_duration_ms, '1d')}",
            code="duration_invalid",
            field="by",
            value=as_written(by_ms, "1d"),
            hint="extend it by more than nothing, and less than that",
        )
    return max_duration_ms


def _max_amount(job: JobView, max_duration_ms: int, decimals: int) -> int:
    """Raises Conflict `price_unknown` when what the marketplace says of the job does not add up."""
    now = largest_cost(job.spec, job.price_ceiling, job.max_duration_ms, decimals)
    if now != job.max_amount:
        raise Conflict(
            f"the marketplace says that this job may cost {format_amount(job.max_amount, decimals)} tokens, and its own price makes that {format_amount(now, decimals)}",
            code="price_unknown",
            field="job",
            value=job.job_id,
            hint="nothing was signed",
        )
    return largest_cost(job.spec, job.price_ceiling, max_duration_ms, decimals)
