"""A workload's segments executed again in the real sandbox: honest ones come out bit for bit, others do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.workload_runs import WORKLOADS
from torg_host.archive import pack
from torg_marketplace.rules.replay import Segment, segments_of
from torg_marketplace.simulation.world import Blobs
from torg_marketplace.workers.replayer import SandboxReplayer
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import CheckpointRef

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = ["--epochs", "8"]
KEEP_ALL = "import sys, runpy, torg_job; torg_job.KEPT = 99; sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"


@dataclass
class Trained:
    """A lease's worth of the `health` workload, all checkpoints kept."""

    blobs: Blobs
    spec: JobSpec
    stored: list[CheckpointRef]
    model: Digest
    folder: Path

    @property
    def segments(self) -> list[Segment]:
        return segments_of(None, self.stored)

    def packed(self, folder: Path) -> BlobRef:
        archive = self.folder / "packed.tar.zst"
        pack(folder, archive)
        return self.blobs.put(archive.read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, blobs = tmp_path_factory.mktemp("trained"), Blobs()
    shutil.copytree(WORKLOADS / "health", folder / "work")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"TORG_CHECKPOINT_DIR": str(folder / "checkpoints"), "TORG_OUTPUT_DIR": str(folder / "outputs")}
    subprocess.run(
        [sys.executable, "-c", KEEP_ALL, *OPTIONS], cwd=folder / "work", env=env, check=True, capture_output=True
    )
    archive = folder / "packed.tar.zst"

    def packed(path: Path) -> BlobRef:
        pack(path, archive)
        return blobs.put(archive.read_bytes())

    raw = yaml.safe_load((WORKLOADS / "health/job.yaml").read_text())
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "command": ["python", "train.py", *OPTIONS],
            "env": {"OMP_NUM_THREADS": "1"},
            "resources": raw["resources"],
            "workspace": packed(WORKLOADS / "health").model_dump(),
            "checkpoint": {"enabled": True},
        }
    )
    stored = [
        CheckpointRef(name=path.name, blob=packed(path), useful_ms=0, written_at_ms=0)
        for path in sorted((folder / "checkpoints").iterdir())
    ]
    model = blobs.put((folder / "outputs/model.safetensors").read_bytes()).digest
    return Trained(blobs, spec, stored, model, folder)


@pytest.mark.parametrize("number", [2, -1])
async def test_honest_segments_come_out_bit_for_bit(trained: Trained, number: int) -> None:
    found = await SandboxReplayer(trained.blobs).replay(trained.spec, trained.segments[number], trained.model)

    assert (found.value, found.bit_equal, found.passes) == (0.0, True, True), found.detail


async def test_a_copied_checkpoint_and_a_foreign_model_are_far_off(trained: Trained, tmp_path: Path) -> None:
    segment = trained.segments[2]
    assert segment.start is not None
    assert segment.end is not None
    copied = segment.end.model_copy(update={"blob": segment.start.blob})
    replayer = SandboxReplayer(trained.blobs)
    found = await replayer.replay(trained.spec, Segment(2, segment.start, copied), trained.model)
    assert found.value is None or found.value > 0.5
    assert not found.passes

    outputs = trained.segments[-1]
    foreign = trained.blobs.put(b"not a model").digest
    found = await replayer.replay(trained.spec, outputs, foreign)
    assert (found.value, found.passes) == (None, False)
    assert "cannot be read" in found.detail


async def test_a_checkpoint_of_another_run_does_not_resume(trained: Trained) -> None:
    other = trained.spec.model_copy(update={"command": ("python", "train.py", "--epochs", "9")})
    found = await SandboxReplayer(trained.blobs).replay(other, trained.segments[2], trained.model)

    assert (found.value, found.passes) == (None, False)
    assert "use the same options again" in found.detail
