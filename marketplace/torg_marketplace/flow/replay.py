"""Replay of a lease's segments, between the claim of a verdict and its application in flow/verify.py.

Whether, and which segments, is drawn after the report: every checkpoint was stored by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from torg_marketplace.flow.audit import Drawn, draw_audit
from torg_marketplace.flow.rows import grant_of, job_row, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.replay import (
    VERIFIERS,
    Distance,
    Segment,
    judge_replays,
    segments_of,
)
from torg_marketplace.rules.verification import not_drawn
from torg_marketplace.storage.models import LeaseEventRow, LeaseRow
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, VerifyReplay
from torg_protocol.messages import CheckpointRef, CheckpointStored, LeaseEvent
from torg_protocol.usage import OutputFile, VerdictSummary

_MODEL = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """`segments` empty: the lease was not drawn for an audit."""

    spec: JobSpec
    segments: tuple[Segment, ...]
    model: Digest | None
    drawn: Drawn


async def replay_task(unit: Unit, lease: LeaseRow, policy: VerifyReplay) -> ReplayTask:
    job = await job_row(unit, lease.job_id)
    stored = await _stored(unit, lease)
    drawn = await draw_audit(unit, lease, job, [item.blob.digest for item in stored])
    files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
    segments: tuple[Segment, ...] = ()
    if drawn.audited:
        every = segments_of(grant_of(lease).resume_from, stored)
        segments = tuple(every[number] for number in drawn.dice.choose(len(every), policy.segments))
    return ReplayTask(spec_of(job), segments, files.get(_MODEL), drawn)


async def verdict_of(market: Market, task: ReplayTask) -> VerdictSummary:
    """The first segment that fails decides. Raises EvaluationFailed."""
    if market.replayer is None:
        raise EvaluationFailed("this marketplace cannot execute segments again any more")
    verdict = not_drawn("replay", task.drawn.permille, {})
    for segment in task.segments:
        found: list[Distance] = []
        judged: VerdictSummary | None = None
        while judged is None and len(found) < VERIFIERS:
            found.append(await market.replayer.replay(task.spec, segment, task.model))
            judged = judge_replays(segment, found)
        if judged is None:
            raise EvaluationFailed(f"{segment.words}: replays disagree")
        verdict = judged
        if verdict.result == "failed":
            break
    return verdict.model_copy(update={"measured": verdict.measured | task.drawn.shown})


async def _stored(unit: Unit, lease: LeaseRow) -> list[CheckpointRef]:
    query = (
        select(LeaseEventRow)
        .where(LeaseEventRow.lease_id == lease.lease_id, LeaseEventRow.refusal.is_(None))
        .order_by(LeaseEventRow.sequence)
    )
    bodies = [LeaseEvent.model_validate(row.event).body for row in await unit.session.scalars(query)]
    return [body.checkpoint for body in bodies if isinstance(body, CheckpointStored)]
