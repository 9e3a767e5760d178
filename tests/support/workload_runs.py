"""Workloads of the catalogue as a node runs them: packed, unpacked, started with plain files and environment variables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.zygote import ForkedProcess, Zygote
from torg_host.archive import pack, unpack
from torg_host.sandbox import CompletedRun, SandboxLimits, SandboxMount, run_sandboxed
from torg_protocol.jobspec import Resources

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"
NAMES = sorted(path.parent.name for path in WORKLOADS.glob("*/target.yaml"))


def target_of(name: str) -> dict[str, Any]:
    target: dict[str, Any] = yaml.safe_load((WORKLOADS / name / "target.yaml").read_text())
    return target


def job_of(name: str) -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((WORKLOADS / name / "job.yaml").read_text())
    return job


def script_of(name: str, *, quick: bool) -> list[str]:
    """With its options: those of job.yaml, or the shortened run's."""
    _, script, *options = job_of(name)["command"]
    return [script, *(target_of(name)["quick"]["options"] if quick else options)]


def prepare(name: str, root: Path) -> Path:
    """The folders that a node gives a job."""
    pack(WORKLOADS / name, root / "workspace.tar.zst")
    unpack(root / "workspace.tar.zst", root / "work")
    for folder in ("checkpoints", "outputs"):
        (root / folder).mkdir()
    return root


def environment(root: Path) -> dict[str, str]:
    folders = {"TORG_CHECKPOINT_DIR": str(root / "checkpoints"), "TORG_OUTPUT_DIR": str(root / "outputs")}
    return {"OMP_NUM_THREADS": "1", **folders}


async def run_in_sandbox(name: str, root: Path, *, quick: bool) -> CompletedRun:
    """What was `prepare`d, behind the walls and within the limits of a job. Raises SandboxUnavailable."""
    asked, inside = Resources.model_validate(job_of(name)["resources"]), Path("/torg")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o644)
    return await run_sandboxed(
        ["python", *script_of(name, quick=quick)],
        mounts=[SandboxMount(root, str(inside), writable=True)],
        limits=SandboxLimits(memory_bytes=asked.memory, cpu_millis=asked.cpus, disk_bytes=asked.disk, pids=256),
        timeout_s=900,
        env=environment(inside),
        workdir=str(inside / "work"),
    )


@dataclass
class Machine:
    """A fresh workspace of a workload. `run` ends by itself; nothing of the repository is in its reach."""

    zygote: Zygote
    name: str
    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        pack(WORKLOADS / self.name, self.root / "workspace.tar.zst")
        unpack(self.root / "workspace.tar.zst", self.root / "work")

    def start(self, *options: str, kill_after_checkpoint: int = 0, env: dict[str, str] | None = None) -> ForkedProcess:
        env = (
            {"OMP_NUM_THREADS": "1"}
            | (env or {})
            | {
                "HOME": str(self.root / "work"),
                "TORG_CHECKPOINT_DIR": str(self.checkpoints),
                "TORG_OUTPUT_DIR": str(self.outputs),
                "TORG_PROGRESS_FILE": str(self.root / "progress.jsonl"),
            }
        )
        return self.zygote.start(
            self.root / "work", [job_of(self.name)["command"][1], *options], env, kill_after_checkpoint
        )

    def run(self, *options: str, kill_after_checkpoint: int = 0) -> tuple[int | None, str, str]:
        process = self.start(*options, kill_after_checkpoint=kill_after_checkpoint)
        out, error = process.communicate(timeout=240)
        return process.returncode, out, error

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def checkpoint_names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())

    def progress(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "progress.jsonl").read_text().splitlines()]

    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.outputs / "metrics.json").read_text())
        return metrics
