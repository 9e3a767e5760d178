"""Runs a catalogue's evaluate.py on a node's model, in our own sandbox: the model is a stranger's file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torg_host.sandbox import SandboxLimits, SandboxMount, SandboxUnavailable, run_sandboxed
from torg_marketplace.ports import BlobStore, CatalogueEntry, EvaluationFailed, Measurement
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_protocol.ids import Digest

TIMEOUT_S = 120.0
MODEL = "model.safetensors"  # what the file is called inside, whatever it is
MAX_MODEL_BYTES = 256 << 20
_LIMITS = SandboxLimits(memory_bytes=1 << 30, cpu_millis=1000, disk_bytes=16 << 20, pids=64)
_REFUSED_INPUT = 2  # exit code of evaluate.py for a model that is not what it must be


class SandboxEvaluator:
    """The Evaluator port. One evaluation at a time is the caller's business."""

    def __init__(self, catalogue: FolderCatalogue, blobs: BlobStore) -> None:
        self._catalogue = catalogue
        self._blobs = blobs

    async def evaluate(
        self, catalogue: CatalogueEntry, metric: str, files: Mapping[str, Digest], seed: int
    ) -> Measurement:
        workload = self._catalogue.workloads.get(catalogue.name)
        if workload is None:
            raise EvaluationFailed(f"no evaluator for {catalogue.name}")
        wanted = catalogue.required_outputs[0]
        if wanted not in files:
            return Measurement(detail=f"there is no {wanted} among the outputs")
        size = await self._blobs.size(files[wanted])
        if size is None or size > MAX_MODEL_BYTES:
            return Measurement(detail=f"{wanted} is missing or larger than {MAX_MODEL_BYTES} bytes")
        with tempfile.TemporaryDirectory(prefix="torg-evaluate-") as scratch:
            folder = Path(scratch)
            folder.chmod(0o755)
            await self._blobs.fetch_to(files[wanted], folder / MODEL)
            (folder / MODEL).chmod(0o644)
            return await self._run(workload.evaluator, folder / MODEL, metric, seed)

    async def _run(self, evaluator: Path, model: Path, metric: str, seed: int) -> Measurement:
        mounts = [SandboxMount(evaluator.parent, "/workload"), SandboxMount(model, f"/evaluate/{MODEL}")]
        argv = ["python", "/workload/evaluate.py", "--model", f"/evaluate/{MODEL}", "--seed", str(seed)]
        try:
            run = await run_sandboxed(
                argv, mounts=mounts, limits=_LIMITS, timeout_s=TIMEOUT_S, env={"OMP_NUM_THREADS": "1"}
            )
        except SandboxUnavailable as error:
            raise EvaluationFailed(error.message) from error
        if run.code not in (0, _REFUSED_INPUT):
            raise EvaluationFailed(
                f"the evaluator ended with {run.reason}, code {run.code}: {run.stderr[-500:].decode(errors='replace')}"
            )
        return _measurement(run.stdout, metric)


def _measurement(stdout: bytes, metric: str) -> Measurement:
    """One JSON object on the last line, strictly. Raises EvaluationFailed for anything else."""
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
        if "error" in answer:
            return Measurement(detail=f"{answer['error']}: {answer.get('detail', '')}")
        values = {name: format(float(value), ".6f") for name, value in answer.items() if isinstance(value, int | float)}
    except (ValueError, IndexError, TypeError) as error:
        raise EvaluationFailed(f"the evaluator's answer is not JSON: {stdout[-200:]!r}") from error
    if metric not in values:
        raise EvaluationFailed(f"the evaluator did not measure {metric}")
    return Measurement(values=values)
