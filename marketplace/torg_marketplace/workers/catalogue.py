"""The catalogue of workloads that this marketplace can verify, read from their folders.

A workload's folder holds job.yaml, the files of its workspace, and evaluate.py, which runs here and never reaches a node.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torg_host.archive import pack
from torg_marketplace.ports import CatalogueEntry
from torg_protocol.ids import Digest


@dataclass(frozen=True, slots=True)
class Workload:
    entry: CatalogueEntry
    evaluator: Path


class FolderCatalogue:
    """Every folder under `root` whose job.yaml asks for the metric policy. Packed once, at start."""

    def __init__(self, root: Path | None = None) -> None:
        self.workloads = {item.entry.name: item for item in _load(root or default_root())}
        self._replayable = _load_replayable(root or default_root())

    def entry(self, name: str) -> CatalogueEntry | None:
        workload = self.workloads.get(name)
        return None if workload is None else workload.entry

    def replayable(self, name: str) -> Digest | None:
        return self._replayable.get(name)


def default_root() -> Path:
    """In a checkout the folder beside the packages (an editable install holds a copy, which grows old), else the package data."""
    checkout = Path(__file__).resolve().parents[3]
    spec = importlib.util.find_spec("torg_workloads")
    if (checkout / "pyproject.toml").is_file() or spec is None or not spec.submodule_search_locations:
        return checkout / "workloads"
    return Path(next(iter(spec.submodule_search_locations)))


def _load_replayable(root: Path) -> dict[str, Digest]:
    """Every folder whose target.yaml says so: trainings whose honest drift between kernels was measured, and is small."""
    found = {}
    for file in sorted(root.glob("*/target.yaml")):
        if yaml.safe_load(file.read_text()).get("replay"):
            with tempfile.TemporaryDirectory(prefix="torg-catalogue-") as scratch:
                packed = pack(file.parent, Path(scratch) / "workspace.tar.zst")
            found[file.parent.name] = Digest(packed.digest)
    return found


def _load(root: Path) -> list[Workload]:
    found = []
    for file in sorted(root.glob("*/job.yaml")):
        raw = yaml.safe_load(file.read_text())
        verify = raw.get("verify", {})
        if verify.get("policy") not in {"metric", "activation"}:
            continue
        with tempfile.TemporaryDirectory(prefix="torg-catalogue-") as scratch:
            packed = pack(file.parent, Path(scratch) / "workspace.tar.zst")
        entry = _activation if verify["policy"] == "activation" else _metric
        found.append(Workload(entry(raw, file.parent, Digest(packed.digest)), file.parent / "evaluate.py"))
    return found


def _metric(raw: dict[str, Any], folder: Path, workspace: Digest) -> CatalogueEntry:
    del folder
    verify = raw["verify"]
    return CatalogueEntry(
        name=verify["catalogue"],
        workspace_digest=workspace,
        metric=verify["metric"],
        target=str(verify["target"]),
        required_outputs=("model.safetensors",),
    )


def _activation(raw: dict[str, Any], folder: Path, workspace: Digest) -> CatalogueEntry:
    """What is far off is in target.yaml: calibrated with the model, and nothing that a client chooses."""
    calibrated = yaml.safe_load((folder / "target.yaml").read_text())["activation"]
    return CatalogueEntry(
        name=raw["verify"]["catalogue"],
        workspace_digest=workspace,
        metric=calibrated["metric"],
        target=calibrated["target"],
        better="lower",
        required_outputs=("answers.safetensors", "answers.txt"),
        policy="activation",
        command=tuple(raw["command"]),
    )
