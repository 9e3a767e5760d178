"""A real training of the catalogue's CNN, run once for all tests of this folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from torg_host.archive import pack, unpack

CNN = Path(__file__).resolve().parents[2] / "workloads" / "cnn"
EPOCHS, STEPS_PER_EPOCH = 8, 23
NEW_MACHINE = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass
class Workspace:
    """What a node gives a job: the packed files, three places to write to, and nothing else of the repository."""

    directory: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *options: str) -> subprocess.Popen[str]:
        places = {
            "TORG_CHECKPOINT_DIR": str(self.checkpoints),
            "TORG_OUTPUT_DIR": str(self.outputs),
            "TORG_PROGRESS_FILE": str(self.progress_file),
        }
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "train.py", *options],
            cwd=self.directory,
            env=NEW_MACHINE | places,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def train(self, *options: str) -> str:
        """To the end; returns what it printed."""
        process = self.start(*options)
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        return out

    def stop_all(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=240)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "there" / "checkpoints"

    @property
    def outputs(self) -> Path:
        return self.directory / "there" / "outputs"

    @property
    def progress_file(self) -> Path:
        return self.directory / "there" / "progress.jsonl"

    def checkpoint_names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir()) if self.checkpoints.exists() else []

    def newest_step(self) -> int:
        return max((int(name[5:]) for name in self.checkpoint_names() if name.startswith("step-")), default=0)

    def progress(self) -> list[dict[str, Any]]:
        text = self.progress_file.read_text() if self.progress_file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.outputs / "metrics.json").read_text())
        return metrics


def unpacked_workspace(directory: Path) -> Workspace:
    """The catalogue's folder as it reaches a node: packed and unpacked again."""
    archive = directory.with_suffix(".tar.zst")
    pack(CNN, archive)
    unpack(archive, directory)
    return Workspace(directory)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    space = unpacked_workspace(tmp_path / "workspace")
    yield space
    space.stop_all()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A training that nobody disturbed. Read only."""
    space = unpacked_workspace(tmp_path_factory.mktemp("uninterrupted") / "workspace")
    space.train("--epochs", str(EPOCHS), "--checkpoint-every-epochs", "2")
    return space


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 100.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


def catches_sigterm(process: subprocess.Popen[str]) -> bool:
    """Has the process set a handler yet? Read from the kernel's mask of caught signals."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
