"""What the store does not hand over is no node's fault; what cannot be unpacked is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from torg_host.archive import pack
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.replay import Segment
from torg_marketplace.simulation.world import Blobs
from torg_marketplace.workers.comparison import compare
from torg_marketplace.workers.replayer import MAX_UNPACKED_BYTES, SandboxReplayer
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


def state(tmp_path: Path, **tensors: np.ndarray) -> bytes:
    """A packed checkpoint with these weights."""
    (tmp_path / "tree").mkdir()
    save_file(tensors, tmp_path / "tree/state.safetensors")
    pack(tmp_path / "tree", tmp_path / "tree.tar.zst")
    return (tmp_path / "tree.tar.zst").read_bytes()


@pytest.mark.parametrize("bad", ["no archive", "not numbers", "moments are not numbers", "nothing in it"])
async def test_what_an_earlier_lease_handed_over_is_not_the_fault_of_who_went_on_from_it(
    tmp_path: Path, bad: str
) -> None:
    """It was: an honest node that was given weights which are no numbers came to no numbers, and lost its stake."""
    blobs, weights = Blobs(), np.full(3, np.nan, dtype=np.float32)
    data = {"no archive": b"no archive", "nothing in it": b""}
    if bad == "not numbers":
        data[bad] = state(tmp_path, **{"model.w": weights})
    if bad == "moments are not numbers":
        data[bad] = state(tmp_path, **{"model.w": np.ones_like(weights), "optimizer.0.exp_avg": weights})
    start, answer = checkpoint(blobs.put(data[bad])), blobs.put(save({"w": weights})).digest
    with pytest.raises(EvaluationFailed, match="where the lease began"):
        await SandboxReplayer(blobs).compare(Segment(0, start, None), answer, answer)
    found = await SandboxReplayer(blobs).compare(Segment(1, start, None), answer, answer)
    assert not found.passes, "of its own making"


async def test_an_archive_that_unpacks_to_more_than_any_checkpoint_is_its_nodes_fault(tmp_path: Path) -> None:
    """Few kilobytes that would fill our disk; then nobody could have been blamed."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/state.safetensors").open("wb") as file:
        file.truncate(MAX_UNPACKED_BYTES + 1)
    pack(tmp_path / "tree", tmp_path / "tree.tar.zst")
    blobs = Blobs()
    start = blobs.put((tmp_path / "tree.tar.zst").read_bytes())
    found = await SandboxReplayer(blobs).compare(Segment(1, checkpoint(start), None), start.digest, start.digest)
    assert (found.value, found.passes) == (None, False)
    assert "a checkpoint cannot be read" in found.detail


RIGHT = save({"model.weight": np.ones((2, 3), np.float32)})


def declared(dtype: str, shape: list[int], size: int) -> bytes:
    """A file that says this of its one tensor."""
    header = json.dumps({"model.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


STRANGE = [
    b"",
    b"not tensors",
    RIGHT[:-1],
    save({}),
    save({"model.other": np.ones((2, 3), np.float32)}),
    save({"model.weight": np.ones((3, 2), np.float32)}),
    save({"model.weight": np.ones((2, 3), np.float16)}),
    save({"model.weight": np.full((2, 3), np.nan, np.float32)}),
    save({"model.weight": np.full((2, 3), np.inf, np.float32)}),
    declared("BF16", [2, 3], 12),
    declared("F8_E4M3", [2, 3], 6),
    declared("C64", [2, 3], 48),
    declared("F32", [2, 3], 1 << 20),
    declared("F32", [1 << 40, 1 << 40], 24),
]


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
@pytest.mark.parametrize("which", ["claimed", "start"])
def test_no_file_of_a_node_makes_the_comparison_fail(tmp_path: Path, strange: bytes, which: str) -> None:
    """Who could make us stumble would not be blamed, and would hold up every other verdict."""
    content = {"mine": RIGHT, "claimed": RIGHT, "start": RIGHT} | {which: strange}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    found = compare(tmp_path / "mine", tmp_path / "claimed", tmp_path / "start")
    if which == "claimed":
        assert not found.passes, found
    else:
        assert found.passes or found.value is None  # the weights agree: where they come from is another matter


STRANGE_NOTES = ["", "no JSON", "[" * 100_000, "{}", "[]", '{"step": 1}', '{"step": 2, "lr": 0.1}', '{"step": 1, "lr": NaN}', '{"step": true, "lr": 0.1}',
                 '{"step": 1, "lr": 0.1, "seconds": "long"}', '{"step": 1, "lr": 0.1, "seconds": -1}', '{"step": 1, "lr": 0.1' + " " * (1 << 20) + "}",
                 '{"step": 1, "lr": ' + "1" * 10_000 + "}"]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE_NOTES, ids=range(len(STRANGE_NOTES)))
def test_no_notes_of_a_node_make_the_comparison_fail(tmp_path: Path, strange: str) -> None:
    folders = [tmp_path / name for name in ("mine", "claimed", "none")]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / "state.safetensors").write_bytes(RIGHT)
        (folder / "state.json").write_text('{"step": 1, "lr": 0.1, "seconds": 3.5}')
    paths = [folder / "state.safetensors" for folder in folders]
    assert compare(paths[0], paths[1], paths[2]).bit_equal
    (folders[1] / "state.json").write_text(strange)
    assert not compare(paths[0], paths[1], paths[2]).passes


@pytest.mark.parametrize("kind", ["missing", "one too many", "a folder", "no text"])
def test_a_claimed_checkpoint_has_the_files_that_the_catalogue_writes(tmp_path: Path, kind: str) -> None:
    for name in ("mine", "claimed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_bytes(RIGHT)
        (tmp_path / name / "state.json").write_text("{}")
    notes = tmp_path / "claimed/state.json"
    if kind == "one too many":
        (tmp_path / "claimed/more").touch()
    elif kind == "no text":
        notes.write_bytes(b"\xff")
    else:
        notes.unlink()
    if kind == "a folder":
        notes.mkdir()
    found = compare(*(tmp_path / name / "state.safetensors" for name in ("mine", "claimed", "start")))
    assert not found.passes
    assert found.detail


@pytest.mark.parametrize(
    ("smallest", "claimed", "passes"),
    [
        (
            1e-5,
            0.3e-5,
            True,
        ),  # a bias before a normalisation has no gradient: on another CPU its moments are others (measured)
        (1e-2, 0.995e-2, True),
        (3e-3, 0.0, False),  # and so its squares, 1e-5 of their neighbours': an embedding of rare words, measured
        (1e-2, 1.05e-2, False),
    ],
)
def test_moments_are_measured_by_their_own_way_unless_they_are_noise(
    tmp_path: Path, smallest: float, claimed: float, passes: bool
) -> None:
    for name, value in (("mine", smallest), ("claimed", claimed)):
        moments = {
            "optimizer.0.exp_avg": np.ones(100, np.float32),
            "optimizer.1.exp_avg": np.full(4, value, np.float32),
        }
        save_file({"model.w": np.ones(3, np.float32)} | moments, tmp_path / name)
    found = compare(tmp_path / "mine", tmp_path / "claimed", tmp_path / "start")
    assert found.passes is passes, found
    assert found.detail == ("" if passes else "optimizer.1.exp_avg is not what the training comes to")
