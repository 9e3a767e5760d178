"""Replay of a lease's segments, between the claim of a verdict and its application in flow/verify.py.

Whether, and which segments, is drawn after the report: every checkpoint was stored by then. Who executes them: flow/replay_checks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.flow.audit import Drawn, draw_audit
from torg_marketplace.flow.replay_checks import Looked, check_segment, stored_checkpoints
from torg_marketplace.flow.rows import grant_of, job_row, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.replay import Segment, can_be_planted, claimed_ms, may_be_beyond_us, segments_of
from torg_marketplace.rules.verification import not_drawn
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.jobspec import VerifyReplay
from torg_protocol.usage import OutputFile, VerdictSummary

_MODEL = "model.safetensors"
_OWN_SHARE_MS = 250  # of each second of the window: the last quarter is for our own replays


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """`segments` empty: the lease was not drawn for an audit."""

    looked: Looked
    segments: tuple[Segment, ...]
    drawn: Drawn


async def replay_task(unit: Unit, lease: LeaseRow, policy: VerifyReplay) -> ReplayTask:
    job = await job_row(unit, lease.job_id)
    stored = await stored_checkpoints(unit, lease)
    every = segments_of(grant_of(lease).resume_from, stored)
    took = {segment.number: claimed_ms(segment, lease.billed_ms + lease.unbilled_ms) for segment in every}
    beyond = [number for number, claimed in took.items() if may_be_beyond_us(claimed)]
    drawn = await draw_audit(unit, lease, job, [item.blob.digest for item in stored], always=bool(beyond))
    files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
    segments: tuple[Segment, ...] = ()
    if drawn.audited:
        dice = drawn.dice
        chosen = {*dice.choose(len(every), policy.segments), *(beyond[i] for i in dice.choose(len(beyond), 1))}
        segments = tuple(every[number] for number in sorted(chosen))
    unplanted = frozenset(item.number for item in segments if not can_be_planted(every, item.number))
    late = unit.now_ms >= (lease.verify_deadline_ms or 0) - unit.policy.verification_window_s * _OWN_SHARE_MS
    looked = Looked(lease.id, spec_of(job), files.get(_MODEL), took, unplanted, late)
    return ReplayTask(looked, segments, drawn)


async def verdict_of(market: Market, task: ReplayTask) -> VerdictSummary | None:
    """The first segment that fails decides; None: a node is executing one. Safe to repeat. Raises EvaluationFailed."""
    verdict = not_drawn("replay", task.drawn.permille, {})
    for segment in task.segments:
        judged = await check_segment(market, task.looked, segment)
        if judged is None:
            return None
        verdict = judged
        if verdict.result == "failed":
            break
    return verdict.model_copy(update={"measured": verdict.measured | task.drawn.shown})
