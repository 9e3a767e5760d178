"""Replay: segments of a training are executed again and compared; what the comparison means. How often: rules/audit.py.

A lease's stored checkpoints are its commitment: each was taken, digest-checked, before anybody knew which would be looked at. A segment
leads from one to the next (or from nothing to the first, or from the last to the outputs). The measure is the relative step distance
|replayed - claimed| / |claimed - start| over the model's weights (Jia et al., Proof-of-Learning, arXiv 2103.05633, as adapted to paid jobs, where
data order, seed and settings are the client's). Measured: honest drift between kernels and threads at most
5.4e-4 (segments of 20 steps), the mildest cheat, bfloat16 in an early segment, 3.8e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, VerifyReplay
from torg_protocol.messages import CheckpointRef
from torg_protocol.usage import VerdictSummary

TOLERANCE = 1.5e-3
VERIFIERS = 3  # a segment that differs is executed twice more; two of three decide
_ALLOWED_ENV = frozenset({"OMP_NUM_THREADS"})


@dataclass(frozen=True, slots=True)
class Segment:
    """`number` counts from 0. `start` None: from nothing. `end` None: from the last checkpoint to the outputs."""

    number: int
    start: CheckpointRef | None
    end: CheckpointRef | None

    @property
    def words(self) -> str:
        start = self.start.name if self.start else "the beginning"
        return f"from {start} to {self.end.name if self.end else 'the outputs'}"


@dataclass(frozen=True, slots=True)
class Distance:
    """Of one replay of one segment. `value` None: there is nothing to compare, `detail` says why."""

    value: float | None
    bit_equal: bool = False
    detail: str = ""

    @property
    def passes(self) -> bool:
        return self.value is not None and self.value <= TOLERANCE


def segments_of(resumed_from: CheckpointRef | None, stored: Sequence[CheckpointRef]) -> list[Segment]:
    """All segments of a lease, the last one to the outputs."""
    points: list[CheckpointRef | None] = [resumed_from, *stored]
    ends: list[CheckpointRef | None] = [*stored, None]
    return [Segment(number, start, end) for number, (start, end) in enumerate(zip(points, ends, strict=True))]


def judge_replays(segment: Segment, found: Sequence[Distance]) -> VerdictSummary | None:
    """The verdict on one segment after these replays of it; None: replay once more."""
    good = sum(distance.passes for distance in found)
    bad = len(found) - good
    last = found[-1]
    measured = {"segment": str(segment.number), "replays": str(len(found))}
    if last.value is not None:
        measured["distance"] = f"{last.value:.3e}"
    if good and good > bad:
        how = "bit for bit" if last.bit_equal else f"within {TOLERANCE}"
        return _verdict("passed", f"{segment.words}: the same {how}", measured)
    if bad > VERIFIERS // 2:
        why = last.detail or f"differs by {last.value:.3e} of the way, {TOLERANCE} at most"
        return _verdict("failed", f"{segment.words}: {why}", measured)
    return None


def replay_impossible(detail: str) -> VerdictSummary:
    return VerdictSummary(policy="replay", result="inconclusive", detail=detail[:2_000], target=str(TOLERANCE))


def check_replay_policy(spec: JobSpec, verify: VerifyReplay, workspace: Digest | None) -> None:
    """Raises Invalid unless an honest node's segments can be expected to replay: only the catalogue's own scripts are known to."""
    if workspace is None:
        raise Invalid(
            "no such catalogue workload that can be replayed here",
            code="catalogue_unknown",
            field="verify.catalogue",
            value=verify.catalogue,
        )
    if spec.workspace is None or spec.workspace.digest != workspace:
        raise Invalid(
            f'only the unchanged workspace of the catalogue workload "{verify.catalogue}" can be replayed',
            code="workspace_not_catalogue",
            field="workspace.digest",
            value=spec.workspace.digest if spec.workspace else None,
            hint=f"use the catalogue's workspace {workspace}, or verify: {{policy: none}}",
        )
    if not spec.checkpoint.enabled:
        raise Invalid(
            "a replay goes from checkpoint to checkpoint",
            code="checkpoint_not_enabled",
            field="checkpoint.enabled",
            value=False,
            hint="checkpoint: {enabled: true}",
        )
    if spec.tasks or spec.command[:2] != ("python", "train.py") or spec.env.keys() - _ALLOWED_ENV:
        raise Invalid(
            "only python train.py with options of its own, and no environment but OMP_NUM_THREADS, can be replayed",
            code="command_not_catalogue",
            field="command",
            value=" ".join(spec.command),
        )


def _verdict(result: str, detail: str, measured: dict[str, str]) -> VerdictSummary:
    return VerdictSummary(
        policy="replay", result=result, detail=detail[:2_000], measured=measured, target=str(TOLERANCE)
    )
