"""Replay of a lease's segments, between the claim of a verdict and its application in flow/verify.py.

Whether, and which segments, is drawn after the report: every checkpoint was stored by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from torg_marketplace.flow.rows import grant_of, job_row, node_row, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.replay import (
    VERIFIERS,
    Distance,
    Segment,
    audit_permille,
    judge_replays,
    not_drawn,
    segments_of,
)
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
    permille: int


async def replay_task(unit: Unit, lease: LeaseRow, policy: VerifyReplay) -> ReplayTask:
    spec, node = spec_of(await job_row(unit, lease.job_id)), await node_row(unit, lease.node_id)
    permille = audit_permille(node.leases_kept, 0, lease.amount)  # a stake on chain is not looked up yet: 0
    files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
    segments: tuple[Segment, ...] = ()
    if unit.market.random.bits(32) % 1000 < permille:
        every = segments_of(grant_of(lease).resume_from, await _stored(unit, lease))
        segments = tuple(_draw(unit, every, policy.segments))
    return ReplayTask(spec, segments, files.get(_MODEL), permille)


async def verdict_of(market: Market, task: ReplayTask) -> VerdictSummary:
    """The first segment that fails decides. Raises EvaluationFailed."""
    if market.replayer is None:
        raise EvaluationFailed("this marketplace cannot execute segments again any more")
    verdict = not_drawn(task.permille)
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
    return verdict


async def _stored(unit: Unit, lease: LeaseRow) -> list[CheckpointRef]:
    query = (
        select(LeaseEventRow)
        .where(LeaseEventRow.lease_id == lease.lease_id, LeaseEventRow.refusal.is_(None))
        .order_by(LeaseEventRow.sequence)
    )
    bodies = [LeaseEvent.model_validate(row.event).body for row in await unit.session.scalars(query)]
    return [body.checkpoint for body in bodies if isinstance(body, CheckpointStored)]


def _draw(unit: Unit, every: list[Segment], count: int) -> list[Segment]:
    """Different ones, evenly, in order."""
    left = list(every)
    drawn = [left.pop(unit.market.random.bits(64) % len(left)) for _ in range(min(count, len(left)))]
    return sorted(drawn, key=lambda segment: segment.number)
