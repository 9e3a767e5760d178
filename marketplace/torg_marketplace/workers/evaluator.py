"""Runs a catalogue's evaluate.py on a node's model, in our own sandbox: the model is a stranger's file, and so is what lies beside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torg_host.sandbox import SandboxLimits, SandboxMount, SandboxUnavailable, run_sandboxed
from torg_marketplace.ports import BlobStore, CatalogueEntry, EvaluationFailed, Measurement
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_protocol.errors import TorgError
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
        missing = [name for name in catalogue.required_outputs if name not in files]
        if missing:
            return Measurement(detail=f"there is no {missing[0]} among the outputs")
        with tempfile.TemporaryDirectory(prefix="torg-evaluate-") as scratch:
            folder = Path(scratch)
            folder.chmod(0o755)
            for name in catalogue.required_outputs:
                inside = folder / (MODEL if name == catalogue.required_outputs[0] else name)
                if not await self._fetch(files[name], inside):
                    return Measurement(detail=f"{name} is larger than {MAX_MODEL_BYTES} bytes")
            return await self._run(workload.evaluator, folder, metric, seed)

    async def _fetch(self, digest: Digest, to: Path) -> bool:
        """False: it is too large. It was in the store when the report was taken: that it cannot be had now is nobody's fault but ours.
        Raises EvaluationFailed."""
        try:
            size = await self._blobs.size(digest)
            if size is not None and size > MAX_MODEL_BYTES:
                return False
            await self._blobs.fetch_to(digest, to)
        except (TorgError, OSError) as error:
            raise EvaluationFailed(f"the store does not hand over {digest}: {error}") from error
        to.chmod(0o644)
        return True

    async def _run(self, evaluator: Path, folder: Path, metric: str, seed: int) -> Measurement:
        mounts = [SandboxMount(evaluator.parent, "/workload"), SandboxMount(folder, "/evaluate")]
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
