"""Match: queued jobs to free nodes. The backlog decides who is looked for in which order (`matching/backlog.py`), the engine on
which node; grants of one pass share transactions, and losing one costs a look later."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from torg_marketplace.flow.book import Queued
from torg_marketplace.flow.commitments import read_commitments
from torg_marketplace.flow.ending import end_queued
from torg_marketplace.flow.grant import NotGrantable, NothingLeft, SameOwner, claim_nodes, grant, grant_on
from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.preempt import make_room
from torg_marketplace.flow.queue_place import running_jobs, strongest_first
from torg_marketplace.flow.reserve import keep_nodes
from torg_marketplace.flow.rows import demand_of, job_row, next_pause_over_ms
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.volumes import look_for_volumes
from torg_marketplace.logs import about
from torg_marketplace.matching.backlog import Waiting
from torg_marketplace.matching.engine import Decision, Engine
from torg_marketplace.matching.explain import explain
from torg_marketplace.matching.gangs import decide_all
from torg_marketplace.matching.reservation import Reservation
from torg_marketplace.matching.snapshot import Demand
from torg_marketplace.storage.among import among
from torg_marketplace.storage.models import JobRow
from torg_marketplace.storage.moves import MovedMeanwhile
from torg_protocol.errors import TorgError
from torg_protocol.ids import NodeId
from torg_protocol.states import JobState

REPLICAS_DRAWN_AMONG = 8  # nodes
BACKLOG = 1_000  # waiting jobs that a pass puts in order, those with the highest claims
_KEPT = "the nodes that are free are kept for a job on several nodes, which waits for longer; a shorter max_duration may fit before it"
_GRANTED_TOGETHER = 16  # in one transaction; others wait for as long
_EXPLAIN_EVERY_MS = 500  # how often what a wish waits for is worked out anew


async def match_pending(market: Market) -> int:
    """Grants what can be granted now and notes for the rest what it waits for. Returns the number of grants."""
    engine = await live_engine(market)
    async with market.reading() as unit:
        waiting, blocked = await look_for_volumes(unit, await _waiting(unit, engine))
        running = await running_jobs(unit)
        now_ms = unit.now_ms
    backlog, batch = market.book.backlog, _Batch(market)
    held: Reservation | None = None
    waits_for: dict[Hashable, str] = {}  # in words, for all that wish the same
    told = blocked  # for those whose volumes are in use, or that spot leases are stopped for
    for job in backlog.turns(waiting, now_ms, running):
        demand = job.demand if held is None else held.outside(job.demand, now_ms)
        chosen = _chosen(market, engine, demand)
        if not chosen and batch:  # what was refused of it is free again
            engine = await batch.grant(engine)
            chosen = _chosen(market, engine, demand)
        if chosen:
            batch.add(engine, job, chosen)
            if batch.is_full:
                engine = await batch.grant(engine)
        else:
            backlog.failed(job)
            waits_for[job.wish] = _explained(market, engine, job, demand, now_ms)
            kept = demand.excluded - job.demand.excluded
            if (making_room := await make_room(market, engine, job, kept)) is not None:
                told[job.job_id] = making_room
            if held is None and (held := await keep_nodes(market, engine, job)) is not None:
                told.setdefault(job.job_id, f"{waits_for[job.wish]}; {held.in_words(now_ms)}")
    await batch.grant(engine)
    market.book.reservation = held
    await _note(market, {job.job_id: waits_for[job.wish] for job in waiting if job.wish in waits_for} | told)
    return batch.granted


def _chosen(market: Market, engine: Engine, demand: Demand) -> tuple[Decision, ...]:
    """Where it fits best. A replica of a quorum: by chance among the few nodes where it fits best, or whoever asks the least, under two names,
    would be the majority of its own wrong result."""
    engine = engine.of(demand.spec)
    best = decide_all(engine, demand)
    if not best or demand.spec.replicas == 1:
        return best
    candidates = [best]
    while len(candidates) < REPLICAS_DRAWN_AMONG:
        demand = replace(demand, excluded=demand.excluded | {candidates[-1][0].node_id})
        if not (another := decide_all(engine, demand)):
            break
        candidates.append(another)
    return candidates[market.random.bits(64) % len(candidates)]


class _Batch:
    """Jobs that this pass has found nodes for, granted together in one transaction; each by itself when one of them is refused there.
    What they take counts as taken at once."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._jobs: dict[str, list[NodeId]] = {}
        self.granted = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        return len(self) >= _GRANTED_TOGETHER

    def add(self, engine: Engine, job: Waiting, chosen: Sequence[Decision]) -> None:
        for each in chosen:
            with contextlib.suppress(KeyError, ValueError):  # read meanwhile by somebody else
                engine.take(each.node_id, job.demand, each.gpus)
        nodes = self._jobs[job.job_id] = [each.node_id for each in chosen]
        # The next pass reads what came of it, whatever happens to this one.
        self._market.book.touch(nodes, only_room=True)

    async def grant(self, engine: Engine) -> Engine:
        """The engine, told of what was refused."""
        jobs, self._jobs = self._jobs, {}
        if not jobs:
            return engine
        refused = await _refused_together(self._market, jobs)
        if refused is None:
            refused = [job_id for job_id, nodes in jobs.items() if not await _try_grant(self._market, job_id, nodes)]
        self.granted += len(jobs) - len(refused)
        if not refused:
            return engine
        self._market.book.touch([node_id for job_id in refused for node_id in jobs[job_id]])
        return await live_engine(self._market)


async def _refused_together(market: Market, jobs: Mapping[str, Sequence[NodeId]]) -> list[str] | None:
    """Grants them in one transaction, but for those that do not wait any more. None: one of them was refused for another reason, and nothing
    was granted."""
    try:
        async with market.transaction() as unit:
            waiting = await _queued_jobs(unit, jobs)
            claims = await claim_nodes(unit, chain.from_iterable(jobs[job_id] for job_id in waiting))
            await read_commitments(unit, {job.vault for job in waiting.values()})
            for job_id, job in waiting.items():
                with about(job_id=job_id):
                    await grant_on(unit, claims, job, jobs[job_id])
    except (TorgError, IntegrityError):  # the latter: the last guard against giving one unit twice
        return None
    return [job_id for job_id in jobs if job_id not in waiting]


async def _waiting(unit: Unit, engine: Engine) -> list[Waiting]:
    """The queue as the matcher sees it. What a job asks for is worked out once per generation; a job that is seen for the
    first time teaches the engine what is asked for."""
    query = (
        select(JobRow.job_id, JobRow.generation)
        .where(JobRow.state == JobState.QUEUED, JobRow.queue_deadline_ms > unit.now_ms)
        .order_by(*strongest_first(unit.now_ms))
        .limit(BACKLOG)
    )
    found = (await unit.session.execute(query)).all()
    book = unit.market.book
    known = ((row[0], book.waiting.get(row[0]), row[1]) for row in found)
    book.waiting = {job_id: job for job_id, job, generation in known if job and job.holds(generation, unit.now_ms)}
    unknown = [row[0] for row in found if row[0] not in book.waiting]
    for start in range(0, len(unknown), 500):
        for job in await unit.session.scalars(_JOBS, {"job_ids": unknown[start : start + 500]}):
            demand = demand_of(job, unit.now_ms)
            if job.generation == 0:
                engine.observe(demand)
            priority, spot = demand.spec.placement.priority, demand.spec.spot
            waits = Waiting(job.job_id, job.price_ceiling, job.created_at_ms, job.client, priority, spot, demand=demand)
            book.waiting[job.job_id] = Queued(job.generation, next_pause_over_ms(job, unit.now_ms), waits)
    book.notes = {job_id: note for job_id, note in book.notes.items() if job_id in book.waiting}
    return [book.waiting[row[0]].job for row in found if row[0] in book.waiting]


_JOBS = select(JobRow).where(among(JobRow.job_id, "job_ids"))


async def _queued_jobs(unit: Unit, job_ids: Iterable[str]) -> dict[str, JobRow]:
    """Of these, those that still wait, in the same order."""
    rows = await unit.session.scalars(_JOBS, {"job_ids": list(job_ids)})
    found = {row.job_id: row for row in rows if row.state == JobState.QUEUED}
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


async def _try_grant(market: Market, job_id: str, nodes: Sequence[NodeId]) -> bool:
    with about(job_id=job_id):
        return await _grant(market, job_id, nodes)


async def _grant(market: Market, job_id: str, nodes: Sequence[NodeId]) -> bool:
    try:
        async with market.transaction() as unit:
            job = await job_row(unit, job_id)
            if job.state != JobState.QUEUED:
                return False
            await grant(unit, job, nodes)
            return True
    except NothingLeft as nothing:
        async with market.transaction() as unit:
            job = await job_row(unit, job_id)
            if job.state == JobState.QUEUED:  # and was not cancelled meanwhile
                await end_queued(unit, job, nothing.reason, nothing.message)
    except SameOwner:
        async with market.transaction() as unit:
            job = await job_row(unit, job_id)
            job.excluded_nodes = sorted({*job.excluded_nodes, *nodes})
        market.book.waiting.pop(job_id, None)  # it asks for others from now on
    except (NotGrantable, MovedMeanwhile):
        market.book.touch(nodes)  # the next pass sees what changed
    except TorgError as refused:  # by the vault: its owner is closing it, or its cap is about to expire
        await _note(market, {job_id: refused.message})
    return False


def _explained(market: Market, engine: Engine, job: Waiting, demand: Demand, now_ms: int) -> str:
    """`demand`: what it was tried with."""
    if demand is not job.demand and decide_all(engine.of(demand.spec), job.demand):
        return _KEPT
    explained = market.book.explained
    at_ms, words = explained.get(job.wish, (None, ""))
    if at_ms is None or not 0 <= now_ms - at_ms < _EXPLAIN_EVERY_MS:
        words = explain(engine.of(job.demand.spec).fleet, job.demand, market.policy.decimals).in_words
        if len(explained) >= BACKLOG:
            explained.clear()
        explained[job.wish] = now_ms, words
    return words


async def _note(market: Market, notes: dict[str, str]) -> None:
    """What queued jobs wait for, where it differs from what is noted."""
    known = market.book.notes
    fresh = {job_id: words for job_id, words in notes.items() if known.get(job_id) != words}
    if not fresh:
        return
    async with market.transaction() as unit:
        for job in await unit.session.scalars(_JOBS, {"job_ids": list(fresh)}):
            if job.state == JobState.QUEUED:
                job.waiting_for = fresh[job.job_id]
    known.update(fresh)
