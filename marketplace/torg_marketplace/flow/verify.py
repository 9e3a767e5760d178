"""Verify: reported work is measured again by the marketplace, outside of any transaction, and judged.

Claim (a transaction) -> evaluate (minutes, no transaction) -> apply (a transaction that drops a verdict which came too late).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select

from torg_marketplace.flow.audit import Drawn, draw_audit
from torg_marketplace.flow.blobs import unseal_outputs
from torg_marketplace.flow.ending import decide_reported
from torg_marketplace.flow.evidence import SEED
from torg_marketplace.flow.planted import advance_planted
from torg_marketplace.flow.quorum import decide_quorum
from torg_marketplace.flow.replay import ReplayTask, replay_task, verdict_of
from torg_marketplace.flow.replay_checks import give_up_checks, on_replay_reported
from torg_marketplace.flow.rows import job_row, spec_of
from torg_marketplace.flow.segments import is_handed_over
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.logs import about
from torg_marketplace.ports import CatalogueEntry, EvaluationFailed
from torg_marketplace.rules.replay import replay_impossible
from torg_marketplace.rules.verification import inconclusive, judge, not_drawn
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.errors import Unavailable
from torg_protocol.ids import Digest, LeaseId
from torg_protocol.jobspec import VerifyActivation, VerifyMetric, VerifyQuorum, VerifyReplay
from torg_protocol.states import LeaseState
from torg_protocol.usage import OutputFile, VerdictSummary

log = logging.getLogger(__name__)
SEED_BITS = 63
_RENEWED_TIMES = 3  # while a claim lasts
# The last three: of a lease that was over before its job, and handed its checkpoints over.
_WAIT = (LeaseState.REPORTED, LeaseState.INCONCLUSIVE, LeaseState.RELEASED, LeaseState.LOST, LeaseState.REVOKED)


@dataclass(frozen=True, slots=True)
class _Task:
    """`metric`, `target`: of the client's own wish, where it may wish. `drawn` of policies that audit: None, everything is measured."""

    lease_id: LeaseId
    entry: CatalogueEntry | None
    policy: VerifyMetric | VerifyActivation
    files: dict[str, Digest]
    seed: int
    drawn: Drawn | None = None


async def verify_pending(market: Market) -> int:
    """Judges what is due, one after the other. Returns the number of decided leases."""
    async with market.reading() as unit:
        query = select(LeaseRow.lease_id).where(*_is_due(unit)).order_by(LeaseRow.verify_at_ms)
        due = (await unit.session.scalars(query)).all()
    decided = 0
    for lease_id in due:
        with about(lease_id=lease_id):
            decided += await _verify_or_put_off(market, lease_id)
    await advance_planted(market)
    return decided


async def _verify_or_put_off(market: Market, lease_id: str) -> bool:
    """One lease on which we stumble holds up neither the others nor, for ever, its client's money."""
    try:
        return await _verify(market, lease_id)
    except Unavailable:
        raise
    except Exception:
        log.exception("the verdict on %s", lease_id)
        return await _retry_or_give_up(market, lease_id, "the verifier failed")


async def _verify(market: Market, lease_id: str) -> bool:
    task = await _claim(market, lease_id)
    if task is None:
        return False
    if isinstance(task, ReplayTask):
        try:
            async with _claim_kept(market, lease_id):
                replayed = await verdict_of(market, task)
            return await _wait(market, lease_id) if replayed is None else await _apply(market, lease_id, replayed)
        except EvaluationFailed as failure:
            return await _retry_or_give_up(market, lease_id, failure.message)
    if task.entry is None:
        return await _retry_or_give_up(market, lease_id, f"{task.policy.catalogue} is not in the catalogue any more")
    if task.drawn is not None and not task.drawn.audited:
        return await _apply(market, lease_id, not_drawn(task.policy.policy, task.drawn.permille, task.drawn.shown))
    metric, target = task.entry.metric, task.entry.target
    if isinstance(task.policy, VerifyMetric):
        metric, target = task.policy.metric, task.policy.target
    try:
        async with _claim_kept(market, lease_id):
            measured = await market.evaluator.evaluate(task.entry, metric, task.files, task.seed)
    except EvaluationFailed as failure:
        return await _retry_or_give_up(market, lease_id, failure.message)
    verdict = judge(
        metric=metric,
        target=target,
        better=task.entry.better,
        measured=measured.values,
        detail=measured.detail,
        policy=task.policy.policy,
    )
    shown = {SEED: str(task.seed)} | (task.drawn.shown if task.drawn is not None else {})
    verdict = verdict.model_copy(update={"measured": verdict.measured | shown})
    return await _apply(market, lease_id, verdict)


async def _claim(market: Market, lease_id: str) -> _Task | ReplayTask | None:
    """Nobody else evaluates this lease for `verify_claim_ms`; if this process dies meanwhile, somebody does then. Who takes longer renews it."""
    async with market.transaction() as unit:
        query = select(LeaseRow).where(LeaseRow.lease_id == lease_id, *_is_due(unit)).with_for_update()
        lease = (await unit.session.scalars(query)).one_or_none()
        if lease is None:
            return None
        job = await job_row(unit, lease.job_id)
        if job.checks_job is not None:
            await on_replay_reported(unit, job, lease)
            return None
        policy = spec_of(job).verify
        lease.verify_at_ms = unit.now_ms + market.policy.verify_claim_ms
        lease.verify_attempts += 1
        if isinstance(policy, VerifyQuorum):
            await decide_quorum(unit, job)
            return None
        if isinstance(policy, VerifyReplay):
            return await replay_task(unit, lease, policy)
        if not isinstance(policy, VerifyMetric | VerifyActivation):
            raise TypeError(f"{lease_id} waits for a verdict that nobody asked for")
        files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
        entry = market.catalogue.entry(policy.catalogue)
        if isinstance(policy, VerifyMetric):
            return _Task(lease.id, entry, policy, files, market.random.bits(SEED_BITS))
        drawn = await draw_audit(unit, lease, job, [])
        return _Task(lease.id, entry, policy, files, drawn.dice.below(2**SEED_BITS), drawn)


@contextlib.asynccontextmanager
async def _claim_kept(market: Market, lease_id: str) -> AsyncIterator[None]:
    """Renews the claim while this goes on: several replays may take an hour."""
    is_over = asyncio.Event()
    renewing = asyncio.create_task(_renew_until(market, lease_id, is_over))
    try:
        yield
    finally:
        is_over.set()  # not cancelled: it may be in a transaction
        await renewing


async def _renew_until(market: Market, lease_id: str, is_over: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), market.policy.verify_claim_ms / _RENEWED_TIMES / 1000)
            return
        try:
            async with market.transaction() as unit:
                lease = await unit.session.get_one(LeaseRow, lease_id, with_for_update=True)
                if lease.decided_at_ms is None:
                    lease.verify_at_ms = unit.now_ms + market.policy.verify_claim_ms
        except Exception:  # the claim holds a while longer, and the verdict is what matters
            log.exception("the claim on %s was not renewed", lease_id)


async def _apply(market: Market, lease_id: str, verdict: VerdictSummary) -> bool:
    async with market.transaction() as unit:
        lease = await unit.session.get_one(LeaseRow, lease_id, with_for_update=True)
        if lease.decided_at_ms is not None:
            return False
        job = await job_row(unit, lease.job_id)
        lease.verify_at_ms = None
        if verdict.result in ("passed", "not_checked") and not is_handed_over(lease, job):
            await unseal_outputs(unit, lease, job)
        await decide_reported(unit, lease, job, verdict)
        return True


async def _wait(market: Market, lease_id: str) -> bool:
    """For a node that executes a segment: its answer wakes us, and we look by ourselves in case that it never comes."""
    async with market.transaction() as unit:
        lease = await unit.session.get_one(LeaseRow, lease_id, with_for_update=True)
        if lease.decided_at_ms is None:
            lease.verify_at_ms = unit.now_ms + market.policy.verify_retry_ms
            lease.verify_attempts -= 1
        return False


async def _retry_or_give_up(market: Market, lease_id: str, detail: str) -> bool:
    async with market.transaction() as unit:
        lease = await unit.session.get_one(LeaseRow, lease_id, with_for_update=True)
        if lease.decided_at_ms is not None:
            return False
        over = lease.verify_attempts >= market.policy.verify_attempts or unit.now_ms >= (lease.verify_deadline_ms or 0)
        if not over:
            lease.verify_at_ms = unit.now_ms + market.policy.verify_retry_ms
            return False
        job = await job_row(unit, lease.job_id)
        policy = spec_of(job).verify
        lease.verify_at_ms = None
        target = policy.target if isinstance(policy, VerifyMetric) else ""
        verdict = replay_impossible(detail)
        if not isinstance(policy, VerifyReplay):
            verdict = inconclusive(policy.policy, target, detail)
        await give_up_checks(unit, lease, detail)
        await decide_reported(unit, lease, job, verdict)
        return True


def _is_due(unit: Unit) -> tuple[ColumnElement[bool], ...]:
    return (
        LeaseRow.state.in_(_WAIT),
        LeaseRow.decided_at_ms.is_(None),
        LeaseRow.verify_at_ms <= unit.now_ms,
    )
