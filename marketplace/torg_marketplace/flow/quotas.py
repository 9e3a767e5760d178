"""What an account may do within a time: submissions of a day, maxima of an hour, work that came to no verdict; and how much of it is used."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Select, func, select

from torg_marketplace.flow.bans import banned
from torg_marketplace.flow.storage_quota import storage_quota
from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.models import ExtensionRow, JobRow, LeaseRow
from torg_protocol.cases import AccountView, QuotaView
from torg_protocol.errors import RateLimited
from torg_protocol.ids import AccountId
from torg_protocol.states import OPEN_JOB_STATES, JobState, LeaseState

DAY_MS, HOUR_MS = 86_400_000, 3_600_000


async def check_submissions(unit: Unit, account: AccountId) -> None:
    """Raises RateLimited submissions_per_day_reached, with when there is room again."""
    most = unit.policy.max_submissions_per_day
    if not most:
        return
    used, oldest_ms = await _submitted(unit, account, DAY_MS)
    if used >= most:
        raise _reached(
            unit,
            f"you have submitted {used} jobs within a day, which is the most",
            "submissions_per_day_reached",
            oldest_ms + DAY_MS,
            used,
        )


async def check_spend(unit: Unit, account: AccountId, more: int) -> None:
    """Whether a job, or a job that is extended, may cost so much (more). What is taken within any hour stays within the limit, whichever of the two
    it was. Raises RateLimited spend_per_hour_reached, with when there is room again."""
    most = unit.policy.max_spend_per_hour
    if not most:
        return
    spent, oldest_ms = await _committed(unit, account)
    if more and spent + more > most:
        if more > most:
            oldest_ms = unit.now_ms  # no time helps: only less
        raise _reached(
            unit,
            f"this may cost {unit.tokens(more)}, and what you asked for within an hour {unit.tokens(spent)}, of {unit.tokens(most)}",
            "spend_per_hour_reached",
            oldest_ms + HOUR_MS,
            more,
        )


def note_extension(unit: Unit, job: JobRow, max_duration_ms: int, more: int) -> None:
    """Counts against the hour in which it was asked for, however old the job is."""
    row = ExtensionRow(job_id=job.job_id, max_duration_ms=max_duration_ms, account=job.client, amount=more)
    row.at_ms = unit.now_ms
    unit.session.add(row)


async def check_undecided(unit: Unit, account: AccountId) -> None:
    """For a job that asks for a verdict. Work without one is not paid, and its logs are read while it runs: a client whose jobs never agree,
    or never end well, would have it all for nothing. Raises RateLimited undecided_per_day_reached."""
    most = unit.policy.max_undecided_per_day
    if not most:
        return
    used, oldest_ms = await _undecided(unit, account)
    if used >= most:
        raise _reached(
            unit,
            f"{used} of your jobs within a day came to no verdict, and their nodes were not paid, which is the most",
            "undecided_per_day_reached",
            oldest_ms + DAY_MS,
            used,
            field="verify.policy",
            hint="find out why with verify: {policy: none}, where work is paid as it is done; torg account show says what is left",
        )


async def account_view(unit: Unit, account: AccountId) -> AccountView:
    policy = unit.policy
    open_jobs = await unit.session.scalar(
        select(func.count()).where(JobRow.client == account, JobRow.state.in_(OPEN_JOB_STATES))
    )
    submitted, first_of_day_ms = await _submitted(unit, account, DAY_MS)
    spent, first_of_hour_ms = await _committed(unit, account)
    undecided, first_undecided_ms = await _undecided(unit, account)
    return AccountView(
        account=account,
        banned=await banned(unit, "wallet", account),
        quotas=(
            QuotaView(name="open_jobs", unit="jobs", used=open_jobs or 0, limit=policy.max_open_jobs_per_account),
            _within("submissions_per_day", "jobs", submitted, policy.max_submissions_per_day, first_of_day_ms + DAY_MS),
            _within("spend_per_hour", "base_units", spent, policy.max_spend_per_hour, first_of_hour_ms + HOUR_MS),
            _within("undecided_per_day", "jobs", undecided, policy.max_undecided_per_day, first_undecided_ms + DAY_MS),
            await storage_quota(unit, account),
        ),
    )


def _within(name: str, unit: str, used: int, limit: int, frees_at_ms: int) -> QuotaView:
    """Of what is counted within a time."""
    return QuotaView(name=name, unit=unit, used=used, limit=limit or None, frees_at_ms=frees_at_ms if used else None)


async def _submitted(unit: Unit, account: AccountId, within_ms: int) -> tuple[int, int]:
    """How many, and when the oldest of them was."""
    query = select(func.count(), func.min(JobRow.created_at_ms)).where(
        JobRow.client == account, JobRow.created_at_ms > unit.now_ms - within_ms
    )
    return await _total(unit, query)


async def _committed(unit: Unit, account: AccountId) -> tuple[int, int]:
    """Base units of the maxima of the last hour's jobs, in which their extensions are, and of the last hour's extensions of older ones."""
    since_ms = unit.now_ms - HOUR_MS
    of_jobs = select(func.sum(JobRow.max_amount), func.min(JobRow.created_at_ms)).where(
        JobRow.client == account, JobRow.created_at_ms > since_ms
    )
    longer = select(func.sum(ExtensionRow.amount), func.min(ExtensionRow.at_ms)).join(JobRow)
    longer = longer.where(
        ExtensionRow.account == account, ExtensionRow.at_ms > since_ms, JobRow.created_at_ms <= since_ms
    )
    new, oldest_ms = await _total(unit, of_jobs)
    added, oldest_added_ms = await _total(unit, longer)
    return new + added, min(oldest_ms, oldest_added_ms)


async def _undecided(unit: Unit, account: AccountId) -> tuple[int, int]:
    """How many jobs of the last day have work that nobody could be paid for, and when the oldest of them was submitted."""
    query = (
        select(func.count(JobRow.job_id.distinct()), func.min(JobRow.created_at_ms))
        .join(LeaseRow, LeaseRow.job_id == JobRow.job_id)
        .where(
            JobRow.client == account,
            JobRow.created_at_ms > unit.now_ms - DAY_MS,
            JobRow.state.in_([JobState.FAILED, JobState.EXPIRED]),
            LeaseRow.state == LeaseState.INCONCLUSIVE,
        )
    )
    return await _total(unit, query)


async def _total(unit: Unit, query: Select[Any, Any]) -> tuple[int, int]:
    """How much, and since when; of nothing, since now."""
    total, oldest_ms = (await unit.session.execute(query)).one()
    return int(total or 0), int(oldest_ms or unit.now_ms)


def _reached(
    unit: Unit, message: str, code: str, frees_at_ms: int, value: int, *, field: str = "account", hint: str = ""
) -> RateLimited:
    """`hint`: the way out, where it is another than to wait."""
    wait_s = max(1, math.ceil((frees_at_ms - unit.now_ms) / 1000))
    to_wait = f"try again in {wait_s} s, submit a smaller job, or ask the operator; torg account show says what is left"
    return RateLimited(message, code=code, field=field, value=value, hint=hint or to_wait, retry_after_s=wait_s)
