"""Match: queued jobs to free nodes, oldest first. Each grant is a transaction of its own; losing one costs a look later."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from torg_marketplace.flow.ending import end_queued
from torg_marketplace.flow.grant import NotGrantable, NothingLeft, grant
from torg_marketplace.flow.rows import demand_of, job_row, node_snapshots
from torg_marketplace.flow.unit import Market
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.explain import explain
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.moves import MovedMeanwhile
from torg_protocol.errors import TorgError
from torg_protocol.ids import NodeId
from torg_protocol.states import JobState

BACKLOG = 200  # jobs looked at in one pass


async def match_pending(market: Market) -> int:
    """Grants what can be granted now and notes for the rest what it waits for. Returns the number of grants.

    No job blocks those behind it: what one cannot use, another may.
    """
    granted, engine = 0, None
    for job_id in await _backlog(market):
        async with market.reading() as unit:
            job = await job_row(unit, job_id)
            if job.state != JobState.QUEUED:
                continue
            if engine is None:
                engine = Engine(market.policy.decimals, await node_snapshots(unit))
        demand = demand_of(job)
        chosen = engine.decide(demand)
        if chosen is not None:
            granted += await _try_grant(market, job_id, chosen.node_id)
            engine = None  # whatever came of it, they are not as we saw them
            continue
        waiting_for = explain(engine.fleet, demand, market.policy.decimals).in_words
        if waiting_for != job.waiting_for:
            await _note_waiting(market, job_id, waiting_for)
    return granted


async def _backlog(market: Market) -> Sequence[str]:
    async with market.reading() as unit:
        query = (
            select(JobRow.job_id).where(JobRow.state == JobState.QUEUED).order_by(JobRow.queued_at_ms, JobRow.job_id)
        )
        return (await unit.session.scalars(query.limit(BACKLOG))).all()


async def _try_grant(market: Market, job_id: str, node_id: NodeId) -> bool:
    try:
        async with market.transaction() as unit:
            job = await job_row(unit, job_id)
            if job.state != JobState.QUEUED:
                return False
            await grant(unit, job, node_id)
            return True
    except NothingLeft as nothing:
        async with market.transaction() as unit:
            await end_queued(unit, await job_row(unit, job_id), nothing.reason, nothing.message)
    except (NotGrantable, MovedMeanwhile):
        pass  # the next pass sees what changed
    except TorgError as refused:  # by the vault: its owner is closing it, or its cap is about to expire
        await _note_waiting(market, job_id, refused.message)
    return False


async def _note_waiting(market: Market, job_id: str, waiting_for: str) -> None:
    async with market.transaction() as unit:
        job = await job_row(unit, job_id)
        if job.state == JobState.QUEUED and job.waiting_for != waiting_for:
            job.waiting_for = waiting_for
