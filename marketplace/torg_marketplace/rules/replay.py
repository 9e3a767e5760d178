"""Replay: segments of a training are executed again and compared; what the comparison means. How often: rules/audit.py.

A lease's stored checkpoints are its commitment: each was taken, digest-checked, before anybody knew which would be looked at. A segment
leads from one to the next (or from nothing to the first, or from the last to the outputs). The measure is the relative step distance
|replayed - claimed| / |claimed - start| over the model's weights (Jia et al., Proof-of-Learning, arXiv 2103.05633, as adapted to paid jobs, where
data order, seed and settings are the client's), and the like for all else in a checkpoint (workers/comparison.py). Measured: honest drift between
kernels and threads at most 5.4e-4 (segments of 20 steps), the mildest cheat, bfloat16 in an early segment, 3.8e-3.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, VerifyReplay
from torg_protocol.messages import CheckpointRef
from torg_protocol.usage import VerdictSummary

TOLERANCE = 1.5e-3
MOMENTS_TOLERANCE = 2e-2  # of an optimizer's state
NOTED_TOLERANCE = 0.1  # of the losses and scores that a training notes
SLOWER_TIMES, START_MS = 3, 240_000
LONGEST_MS = 900_000  # that we execute one segment ourselves
NODES_ASKED = 2  # before we execute it ourselves
VERIFIERS = 3  # of our own replays at most; two that differ decide, or one and a node's
_ALLOWED_ENV = frozenset({"OMP_NUM_THREADS"})


@dataclass(frozen=True, slots=True)
class Segment:
    """`number` counts from 0. `start` None: from nothing. `end` None: from the last checkpoint to the outputs. `over_after_ms`: by then a replay has
    come to its end, if the node's word about the time is true and we are no slower than most; None: nobody could tell."""

    number: int
    start: CheckpointRef | None
    end: CheckpointRef | None
    over_after_ms: int | None = None

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


def can_be_planted(every: Sequence[Segment], number: int) -> bool:
    """Whether a node that executes this one of a lease's segments could be given another of the same look, whose answer we know: what comes before
    it must begin from a checkpoint that can be altered. Not so the first of a lease, nor the second of a fresh training."""
    return 0 < number < len(every) and every[number - 1].start is not None


def claimed_ms(segment: Segment, useful_ms: int) -> int:
    """What it took, by the word of the node that executed it. `useful_ms`: of the whole lease."""
    before_ms = segment.start.useful_ms if segment.start is not None and segment.number else 0
    return max((useful_ms if segment.end is None else segment.end.useful_ms) - before_ms, 0)


def longest_replay_ms(claimed: int) -> int:
    """What a node may take for it, start and imports included: slower ones come into question too."""
    return SLOWER_TIMES * claimed + START_MS


def over_after_ms(spec: JobSpec, claimed: int) -> int | None:
    """After which a replay of ours that has not come to the end is given up. That blames the node only where another owner's had as long, and was not
    there either: our machine may be slow. Of a GPU's work it says nothing, we may have none."""
    return None if spec.resources.gpus else longest_replay_ms(claimed)


def ours_from_ms(deadline_ms: int, window_ms: int, claimed: int) -> int:
    """From when on no node is waited for: what is left of the verification window is for a replay of our own."""
    one_replay_ms = min(longest_replay_ms(claimed), LONGEST_MS)
    return deadline_ms - max(window_ms // 4, min(one_replay_ms, window_ms // 2))


def may_be_beyond_us(claimed: int) -> bool:
    """Whether we could run out of time before the node's own word is refuted, so that nobody could be blamed. A lease with such a segment is looked at
    just there, always: else who stores few checkpoints would be paid whenever no audit is drawn, and lose nothing by one."""
    return longest_replay_ms(claimed) > LONGEST_MS


class Ask(enum.Enum):
    """Who executes the segment next."""

    NODE = "node"  # of an owner who is neither the lease's nor one of those who answered
    OURSELVES = "ourselves"


@dataclass(frozen=True, slots=True)
class Answer:
    distance: Distance
    by_node: bool


def next_step(segment: Segment, found: Sequence[Answer], owners: int = 1) -> VerdictSummary | Ask | None:
    """After these answers, in their order: the verdict on the segment, or who executes it next. None: we contradict ourselves.

    Nodes of so many owners that find it right are enough. When one finds it wrong, a second of another owner is asked, and then we execute it ourselves,
    whatever that one says: two owners in league must not be able to take a third one's stake, nor to acquit each other.
    """
    nodes = [answer.distance for answer in found if answer.by_node]
    ours = [answer.distance for answer in found if not answer.by_node]
    if not ours:
        if len(nodes) >= owners and all(distance.passes for distance in nodes):
            return _passed(segment, nodes, found)
        return Ask.NODE if len(nodes) < NODES_ASKED else Ask.OURSELVES
    good, bad = _tally(ours)
    if good > bad:
        return _passed(segment, ours, found)
    if bad and bad + _tally(nodes)[1] > VERIFIERS // 2:
        return _failed(segment, ours, found)
    return Ask.OURSELVES if len(ours) < VERIFIERS else None


def next_step_of_planted(segment: Segment, found: Sequence[Answer]) -> VerdictSummary | Ask:
    """Of a segment whose answer we have computed ourselves: that is one voice already. Inconclusive: two owners agree that we are wrong."""
    good, bad = _tally([answer.distance for answer in found])
    if good:
        return _passed(segment, [answer.distance for answer in found], found)
    if bad > 1:
        return replay_impossible(f"{segment.words}: two nodes contradict what we have computed")
    return Ask.NODE


def is_outvoted(answer: Answer, verdict: VerdictSummary) -> bool:
    """A node that said otherwise than the verdict: it has not executed the segment, or lied about it."""
    if not answer.by_node or verdict.result not in ("passed", "failed"):
        return False
    return answer.distance.passes != (verdict.result == "passed")


def _tally(found: Sequence[Distance]) -> tuple[int, int]:
    good = sum(distance.passes for distance in found)
    return good, len(found) - good


def _passed(segment: Segment, deciding: Sequence[Distance], found: Sequence[Answer]) -> VerdictSummary:
    last = next(distance for distance in reversed(deciding) if distance.passes)
    how = "bit for bit" if last.bit_equal else f"within {TOLERANCE}"
    return _verdict("passed", f"{segment.words}: the same {how}", _measured(segment, last, found))


def _failed(segment: Segment, deciding: Sequence[Distance], found: Sequence[Answer]) -> VerdictSummary:
    last = next(distance for distance in reversed(deciding) if not distance.passes)
    why = last.detail or f"differs by {last.value:.3e} of the way, {TOLERANCE} at most"
    return _verdict("failed", f"{segment.words}: {why}", _measured(segment, last, found))


def _measured(segment: Segment, last: Distance, found: Sequence[Answer]) -> dict[str, str]:
    measured = {"segment": str(segment.number), "replays": str(len(found))}
    if by_nodes := sum(answer.by_node for answer in found):
        measured["replays_by_nodes"] = str(by_nodes)
    if last.value is not None:
        measured["distance"] = f"{last.value:.3e}"
    return measured


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
            hint="some trainings come out otherwise on another CPU, and an honest node would not be paid: docs/explanation/verification.md names those that can",
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
