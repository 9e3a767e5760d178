"""A workload trained here from beginning to end, every checkpoint kept and stored: what a node would have committed to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.workload_runs import WORKLOADS, job_of
from torg_host.archive import pack
from torg_marketplace.replay_segment import WANTED
from torg_marketplace.rules.replay import Segment, segments_of
from torg_marketplace.simulation.world import Blobs
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import CheckpointRef

_KEEP_ALL = (
    "import sys, runpy, torg_job; torg_job.KEPT = 9999; sys.argv[0] = 'train.py';"
    " runpy.run_path('train.py', run_name='__main__')"
)


@dataclass(frozen=True)
class Trained:
    """`commit_s`: packing and digesting all checkpoints, as a node does in the background."""

    blobs: Blobs
    spec: JobSpec
    stored: list[CheckpointRef]
    model: Digest
    commit_s: float

    @property
    def segments(self) -> list[Segment]:
        return segments_of(None, self.stored)


def train(name: str, options: list[str], folder: Path, *, stopped_at: str = "") -> Trained:
    """`stopped_at`: a checkpoint that there is only because the job was asked to stop, which it did not."""
    blobs, commit_s = Blobs(), 0.0
    shutil.copytree(WORKLOADS / name, folder / "work")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"TORG_CHECKPOINT_DIR": str(folder / "checkpoints"), "TORG_OUTPUT_DIR": str(folder / "outputs")}
    env |= {WANTED: stopped_at}
    command = [sys.executable, "-c", _KEEP_ALL, *options]
    subprocess.run(command, cwd=folder / "work", env=env, check=True, capture_output=True)
    workspace = _packed(WORKLOADS / name, blobs, folder)
    stored = []
    for path in sorted((folder / "checkpoints").iterdir()):
        began = time.perf_counter()
        blob = _packed(path, blobs, folder)
        commit_s += time.perf_counter() - began
        stored.append(CheckpointRef(name=path.name, blob=blob, useful_ms=0, written_at_ms=0))
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "command": ["python", "train.py", *options],
            "env": {"OMP_NUM_THREADS": "1"},
            "resources": job_of(name)["resources"],
            "workspace": workspace.model_dump(),
            "checkpoint": {"enabled": True},
        }
    )
    model = blobs.put((folder / "outputs/model.safetensors").read_bytes()).digest
    return Trained(blobs, spec, stored, model, commit_s)


def _packed(path: Path, blobs: Blobs, folder: Path) -> BlobRef:
    """Under the name that a node gives it: a large one has that of its pieces."""
    archive = folder / "packed.tar.zst"
    packed = pack(path, archive)
    blobs.stored[Digest(packed.digest)] = archive.read_bytes()
    return BlobRef(digest=Digest(packed.digest), size_bytes=packed.size_bytes)
