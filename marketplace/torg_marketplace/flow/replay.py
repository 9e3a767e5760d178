"""Replay of a lease's segments, between the claim of a verdict and its application in flow/verify.py.

Whether, and which segments, is drawn after the lease has ended: every checkpoint was stored by then. Who executes them: flow/replay_checks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torg_marketplace.flow.audit import Drawn
from torg_marketplace.flow.replay_checks import Looked, check_segment
from torg_marketplace.flow.rows import job_row, spec_of
from torg_marketplace.flow.segments import draw_segments
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.replay import Segment, can_be_planted, ours_from_ms
from torg_marketplace.rules.verification import not_drawn
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.jobspec import VerifyReplay
from torg_protocol.usage import OutputFile, VerdictSummary

_MODEL = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """`segments` empty: the lease was not drawn for an audit."""

    looked: Looked
    segments: tuple[Segment, ...]
    drawn: Drawn


async def replay_task(unit: Unit, lease: LeaseRow, policy: VerifyReplay) -> ReplayTask:
    job = await job_row(unit, lease.job_id)
    found = await draw_segments(unit, lease, job, policy)
    files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
    unplanted = frozenset(item.number for item in found.chosen if not can_be_planted(found.every, item.number))
    longest_ms = max((found.claimed_ms[item.number] for item in found.chosen), default=0)
    window_ms = unit.policy.verification_window_s * 1000
    late = unit.now_ms >= ours_from_ms(lease.verify_deadline_ms or 0, window_ms, longest_ms)
    looked = Looked(lease.id, spec_of(job), files.get(_MODEL), found.claimed_ms, unplanted, late)
    return ReplayTask(looked, found.chosen, found.drawn)


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
