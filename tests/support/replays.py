"""Replays without weights: what a claim is worth is known here, and an answer says how it came about."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.actors import Node
from tests.support.market import World
from torg_marketplace.ports import EvaluationFailed, Planted, TookTooLong
from torg_marketplace.replay_segment import ANSWER, REPORT
from torg_marketplace.rules.replay import Distance, Segment
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import Accepted

SAME, FAR = Distance(0.0, bit_equal=True), Distance(0.4)
# What a node that should execute a segment hands over: it has executed it; it has the lease's own weights from its owner; anything.
EXECUTED, COPIED, JUNK = b"executed", b"copied from the lease", b"junk"


@dataclass
class KnowingReplayer:
    """`lies`: digests of checkpoints and models that are not what the job makes of what was before. `broken`: our sandbox does not work. `slow`: we
    are never at the end of a segment when we should be."""

    world: World
    lies: set[Digest] = field(default_factory=set)
    executed: list[Segment] = field(default_factory=list)
    broken: bool = False
    slow: bool = False

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        del spec
        if self.broken:
            raise EvaluationFailed("no sandbox")
        self.executed.append(segment)
        if self.slow:
            raise TookTooLong("not there")
        return FAR if self._claimed(segment, model) in self.lies else SAME

    async def compare(self, segment: Segment, model: Digest | None, answer: Digest) -> Distance:
        claimed, handed_over = self._claimed(segment, model), await self.world.blobs.read(answer)
        is_planted = (await self.world.blobs.read(claimed)).startswith(b"known")
        match handed_over:
            case b"executed":
                return FAR if claimed in self.lies else SAME
            case b"copied from the lease":
                return FAR if is_planted else SAME
            case _:
                return FAR

    async def plant(self, spec: JobSpec, before: Segment, segment: Segment, model: Digest | None, seed: int) -> Planted:
        del spec, model
        assert before.start is not None
        assert before.end == segment.start
        assert segment.start is not None
        start = segment.start.model_copy(update={"blob": self.world.blobs.put(b"altered %d" % seed)})
        return Planted(start, self.world.blobs.put(b"known %d" % seed).digest)

    def _claimed(self, segment: Segment, model: Digest | None) -> Digest:
        claimed = segment.end.blob.digest if segment.end is not None else model
        assert claimed is not None
        return claimed


async def execute(node: Node, weights: bytes = EXECUTED, *, seconds: int = 10) -> None:
    """Takes the grant that waits, and hands over these weights."""
    node.read()
    await node.ok(Accepted())
    await node.start()
    node.world.advance(seconds=seconds)
    await node.finish(outputs={ANSWER: weights, REPORT: b"{}"})
