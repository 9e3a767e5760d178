"""What the store does not hand over is no node's fault; what cannot be unpacked is."""

from __future__ import annotations

from pathlib import Path

import pytest

from torg_host.archive import pack
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.replay import Segment
from torg_marketplace.simulation.world import Blobs
from torg_marketplace.workers.replayer import SandboxReplayer
from torg_protocol.errors import NotFound, Unavailable
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import CheckpointRef


class Failing(Blobs):
    """Hands over everything but `lost`."""

    lost: Digest
    error: Exception

    async def fetch_to(self, digest: Digest, path: Path) -> None:
        if digest == self.lost:
            raise self.error
        await super().fetch_to(digest, path)


def checkpoint(blob: BlobRef) -> CheckpointRef:
    return CheckpointRef(name="step-1", blob=blob, useful_ms=0, written_at_ms=0)


@pytest.mark.parametrize("lost", ["start", "model", "answer"])
@pytest.mark.parametrize(
    "error",
    [Unavailable("the store is away", code="store_unavailable"), NotFound("gone", code="blob_missing"), OSError()],
)
async def test_what_cannot_be_fetched_says_nothing_about_the_work(tmp_path: Path, lost: str, error: Exception) -> None:
    blobs = Failing()
    (tmp_path / "tree").mkdir()
    pack(tmp_path / "tree", tmp_path / "tree.tar.zst")
    start, model, answer = (
        blobs.put((tmp_path / "tree.tar.zst").read_bytes()),
        blobs.put(b"the model"),
        blobs.put(b"the answer"),
    )
    blobs.lost, blobs.error = {"start": start, "model": model, "answer": answer}[lost].digest, error
    segment = Segment(1, checkpoint(start), None)
    with pytest.raises(EvaluationFailed, match="does not hand over"):
        await SandboxReplayer(blobs).compare(segment, model.digest, answer.digest)


async def test_a_checkpoint_that_cannot_be_unpacked_is_its_nodes_fault() -> None:
    blobs = Blobs()
    segment = Segment(1, checkpoint(blobs.put(b"no archive")), None)
    found = await SandboxReplayer(blobs).compare(segment, blobs.put(b"").digest, blobs.put(b"x").digest)
    assert found.value is None
    assert found.detail.startswith("a checkpoint cannot be read")
