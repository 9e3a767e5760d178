"""Where a waiting job stands among the others, by the matcher's own order; read from the database, so that any process can say it."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Float, case, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute

from torg_marketplace.flow.unit import Unit
from torg_marketplace.matching.backlog import AGEING_MS, InLine, place_of
from torg_marketplace.storage.models import JobRow
from torg_protocol.api import QueuePlace
from torg_protocol.states import JobState

_LOOKED_AT = 2_000  # of the waiting jobs, those with the strongest claims


def strongest_first(now_ms: int) -> tuple[ColumnElement[float], InstrumentedAttribute[str]]:
    """In which order waiting jobs are looked at: by price ceiling times age (`matching/backlog.py`)."""
    waited_ms = now_ms - JobRow.created_at_ms
    age_ms = case((waited_ms > 0, waited_ms), else_=0) + AGEING_MS  # before the clock was set back it was later
    return ((cast(JobRow.price_ceiling, Float) + 1) * age_ms).desc(), JobRow.job_id


async def queue_place(unit: Unit, job: JobRow) -> QueuePlace | None:
    """None when it does not wait, or stands behind all that is looked at."""
    if job.state != JobState.QUEUED:
        return None
    spot, priority = JobRow.spec["spot"].as_boolean(), JobRow.spec["placement"]["priority"].as_integer()
    query = (
        select(JobRow.job_id, JobRow.price_ceiling, JobRow.created_at_ms, JobRow.client, priority, spot)
        .where(JobRow.state == JobState.QUEUED)
        .order_by(*strongest_first(unit.now_ms))
        .limit(_LOOKED_AT)
    )
    rows = (await unit.session.execute(query)).all()
    waiting = [
        InLine(name, bid, at_ms, account, first or 0, bool(is_spot))
        for name, bid, at_ms, account, first, is_spot in rows
    ]
    running = await running_jobs(unit)
    found = place_of(job.job_id, waiting, unit.now_ms, running)
    if found is None:
        return None
    return QueuePlace(
        place=found.place,
        waiting=found.waiting,
        bid_more=found.bid_more,
        waited_longer=found.waited_longer,
        by_turn=found.by_turn,
        own=found.own,
        own_running=running.get(job.client, 0),
    )


async def running_jobs(unit: Unit) -> dict[str, int]:
    """Leased jobs per account."""
    query = select(JobRow.client, func.count()).where(JobRow.state == JobState.LEASED).group_by(JobRow.client)
    return {row[0]: int(row[1]) for row in (await unit.session.execute(query)).all()}
