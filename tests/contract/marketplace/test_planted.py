"""Planted segments of a real training, in the real sandbox: what is handed out looks like any other, who executes it comes out bit for bit, and
who hands over anything else does not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import load_file

import torg_marketplace.replay_segment as script
from tests.support.trained import Trained, train
from tests.support.workload_runs import WORKLOADS
from torg_host.archive import unpack
from torg_marketplace.ports import EvaluationFailed, Planted
from torg_marketplace.rules.replay import Answer, Distance, Segment, is_outvoted, next_step_of_planted
from torg_marketplace.workers.comparison import alter
from torg_marketplace.workers.replayer import LEAST_PLANTED, SandboxReplayer
from torg_protocol.ids import Digest
from torg_protocol.messages import CheckpointRef
from torg_protocol.usage import VerdictSummary

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

OPTIONS = {"health": ["--epochs", "8"], "transformer": ["--steps", "32", "--width", "64"]}
HELD_OUT_BITS = """
import sys, torch, train, bpe, language_model
from safetensors.torch import load_file
torch.set_num_threads(1)
learnt_from, held_out = train.texts()
vocabulary = bpe.learn(learnt_from, train.SYMBOLS)
numbers, lengths = torch.tensor(vocabulary.encode(held_out)), torch.tensor(vocabulary.lengths())
for path in sys.argv[1:]:
    model = language_model.LanguageModel(train.SYMBOLS, 64)
    state = load_file(path)
    model.load_state_dict({name: state["state.model." + name] for name in model.state_dict()})
    print(language_model.bits_per_character(model, numbers, lengths))
"""
NUMBER = 2  # of the segment: from the second checkpoint to the third


@dataclass(frozen=True)
class Case:
    workload: str
    trained: Trained
    planted: Planted
    folder: Path

    @property
    def before(self) -> Segment:
        return self.trained.segments[NUMBER - 1]

    @property
    def segment(self) -> Segment:
        return self.trained.segments[NUMBER]

    @property
    def original(self) -> CheckpointRef:
        assert self.segment.start is not None
        return self.segment.start

    @property
    def end(self) -> CheckpointRef:
        assert self.segment.end is not None
        return self.segment.end

    def unpacked(self, checkpoint: CheckpointRef) -> Path:
        to = self.folder / checkpoint.blob.digest.replace(":", "-")
        if not to.exists():
            archive = to.with_suffix(".tar.zst")
            archive.write_bytes(self.trained.blobs.stored[checkpoint.blob.digest])
            unpack(archive, to)
        return to

    def executed(self) -> Digest:
        """By a node: the script that it is given, in its own process, from the checkpoint that it is given."""
        root = self.folder / "node"
        unpack_to(self.trained, self.planted.start.blob.digest, root / "checkpoints" / self.planted.start.name)
        assert self.trained.spec.workspace is not None
        unpack_to(self.trained, self.trained.spec.workspace.digest, root / "work")
        (root / "outputs").mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": str(root), "OMP_NUM_THREADS": "1"}
        env |= {"TORG_CHECKPOINT_DIR": str(root / "checkpoints"), "TORG_OUTPUT_DIR": str(root / "outputs")}
        source, command = Path(script.__file__).read_text(), [sys.executable, *self.trained.spec.command[1:]]
        command = [sys.executable, "-c", source, self.end.name, *command]
        subprocess.run(command, cwd=root / "work", env=env, check=True, capture_output=True, timeout=300)
        assert json.loads((root / "outputs" / script.REPORT).read_text())["reached"]
        return self.trained.blobs.put((root / "outputs" / script.ANSWER).read_bytes()).digest

    async def distance(self, answer: Digest) -> Distance:
        segment = Segment(NUMBER, self.planted.start, None)
        return await SandboxReplayer(self.trained.blobs).compare(segment, self.planted.answer, answer)


def unpack_to(trained: Trained, digest: Digest, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    archive = to.parent / f".{to.name}.tar.zst"
    archive.write_bytes(trained.blobs.stored[digest])
    unpack(archive, to)
    archive.unlink()


@pytest.fixture(scope="module", params=OPTIONS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("planted")
    trained = train(request.param, OPTIONS[request.param], folder)
    segments = trained.segments
    replayer = SandboxReplayer(trained.blobs)
    planted = asyncio.run(replayer.plant(trained.spec, segments[NUMBER - 1], segments[NUMBER], trained.model, seed=1))
    return Case(request.param, trained, planted, folder)


async def test_its_form_is_that_of_the_checkpoint_that_it_replaces(case: Case) -> None:
    original, planted = case.original, case.planted.start
    assert planted.model_copy(update={"blob": original.blob}) == original
    assert planted.blob.digest != original.blob.digest
    assert planted.blob.digest.partition(":")[0] == original.blob.digest.partition(":")[0]
    assert planted.blob.digest.startswith("pieces:" if case.workload == "transformer" else "sha256:")
    assert planted.blob.size_bytes == pytest.approx(original.blob.size_bytes, rel=0.02)
    assert members(case, planted) == members(case, original)

    theirs, ours = (case.unpacked(item) / "state.safetensors" for item in (original, planted))
    assert header(theirs) == header(ours)
    said, says = (json.loads((case.unpacked(item) / "state.json").read_text()) for item in (original, planted))
    assert (said["seconds"], said["settings"]) == (says["seconds"], says["settings"])
    assert shape(said["state"]) == shape(says["state"])
    before, after = load_file(theirs), load_file(ours)
    whole = [name for name, value in before.items() if value.dtype.kind != "f"]
    assert whole, "the state of random generators and the order of the data"
    assert all(np.array_equal(before[name], after[name]) for name in whole)
    floating = set(before) - set(whole)
    assert all(before[name].std() == pytest.approx(after[name].std(), rel=0.1, abs=1e-3) for name in floating)


@pytest.mark.parametrize("case", ["transformer"], indirect=True)  # the one that notes its loss on held-out text
def test_what_it_says_of_itself_was_measured_on_its_own_weights(case: Case) -> None:
    """Whoever evaluates the weights that they are given, and compares with what the training noted at that step, finds nothing. An altered
    checkpoint handed out as it is would be known by that."""
    original, planted = (case.unpacked(item) for item in (case.original, case.planted.start))
    altered = case.folder / "altered.safetensors"
    shutil.copyfile(original / "state.safetensors", altered)
    alter(altered, case.unpacked(case.end) / "state.safetensors", seed=1)
    files = [original / "state.safetensors", planted / "state.safetensors", altered]
    options = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(case.folder)}
    command = [sys.executable, "-c", HELD_OUT_BITS, *map(str, files)]
    ran = subprocess.run(
        command, cwd=WORKLOADS / case.workload, env=options, check=True, capture_output=True, timeout=300
    )
    measured = [float(line) for line in ran.stdout.split()]
    noted = [noted_bits(folder) for folder in (original, planted)]
    assert measured[:2] == pytest.approx(noted, rel=1e-6)
    assert noted[0] != noted[1]
    assert measured[2] != pytest.approx(noted[0], rel=1e-6)


async def test_who_executes_it_passes_and_who_does_not_is_found(case: Case) -> None:
    blobs, end = case.trained.blobs, case.end
    answers = {
        "executed": case.executed(),
        "copied from the lease": blobs.put((case.unpacked(end) / "state.safetensors").read_bytes()).digest,
        "handed back": blobs.put((case.unpacked(case.planted.start) / "state.safetensors").read_bytes()).digest,
        "nothing": blobs.put(b"").digest,
    }
    found = {how: await case.distance(answer) for how, answer in answers.items()}
    assert (found["executed"].value, found["executed"].bit_equal) == (0.0, True)
    right = Answer(found.pop("executed"), by_node=True)
    for how, distance in found.items():
        assert distance.value is None or distance.value >= LEAST_PLANTED, how
        wrong = Answer(distance, by_node=True)
        verdict = next_step_of_planted(case.segment, [wrong, right])
        assert isinstance(verdict, VerdictSummary)
        assert (is_outvoted(wrong, verdict), is_outvoted(right, verdict)) == (True, False), how


async def test_nothing_is_planted_where_nothing_can_be_altered(case: Case) -> None:
    first, second = case.trained.segments[:2]
    with pytest.raises(EvaluationFailed, match="begins from nothing"):
        await SandboxReplayer(case.trained.blobs).plant(case.trained.spec, first, second, case.trained.model, seed=1)


def members(case: Case, checkpoint: CheckpointRef) -> list[tuple[str, int, int, int]]:
    """Names, modes, times, and sizes of what is binary."""
    data = zstandard.ZstdDecompressor().stream_reader(
        case.trained.blobs.stored[checkpoint.blob.digest], read_across_frames=True
    )
    with tarfile.open(fileobj=data, mode="r|") as tar:
        return [(item.name, item.mode, int(item.mtime), item.size * item.name.endswith(".safetensors")) for item in tar]


def header(file: Path) -> bytes:
    """Names, kinds, shapes and places of all tensors, and what is noted beside them."""
    data = file.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def shape(value: object) -> object:
    """Without the numbers that are measured."""
    match value:
        case dict():
            return {key: shape(item) for key, item in value.items()}
        case list():
            return [shape(item) for item in value]
        case float():
            return "a number"
    return value


def noted_bits(checkpoint: Path) -> float:
    """What the training itself measured at this step."""
    state = dict(json.loads((checkpoint / "state.json").read_text())["state"]["dict"])
    newest = dict(state["history"]["list"][-1]["dict"])
    return float(newest["bits_per_character"])
