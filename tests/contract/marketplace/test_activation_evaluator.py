"""The marketplace's evaluator of fingerprints in the real sandbox, on texts that the real workload wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.adversary.generations import CHEATS, Answers, honest
from tests.support.workload_runs import WORKLOADS
from torg_marketplace.ports import Measurement
from torg_marketplace.simulation.world import Blobs
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_marketplace.workers.evaluator import SandboxEvaluator

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(400)]


async def evaluated(answers: Answers, folder: Path) -> Measurement:
    catalogue, blobs = FolderCatalogue(WORKLOADS), Blobs()
    entry = catalogue.entry("generate")
    assert entry is not None
    assert (entry.policy, entry.better) == ("activation", "lower")
    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, folder / "answers.safetensors")
    digest = blobs.put((folder / "answers.safetensors").read_bytes()).digest
    return await SandboxEvaluator(catalogue, blobs).evaluate(
        entry, entry.metric, {"answers.safetensors": digest}, 2**62
    )


async def test_the_right_models_texts_pass_and_others_do_not(tmp_path: Path) -> None:
    right = await evaluated(honest(), tmp_path)
    assert float(right.values["distance"]) < 3e-5
    assert right.values["texts"] == "8.000000"
    wrong = await evaluated(CHEATS["cached answers"](), tmp_path)
    assert float(wrong.values["distance"]) > 0.1


async def test_outputs_without_answers_are_the_nodes_failure() -> None:
    catalogue = FolderCatalogue(WORKLOADS)
    entry = catalogue.entry("generate")
    assert entry is not None
    found = await SandboxEvaluator(catalogue, Blobs()).evaluate(entry, entry.metric, {}, 1)
    assert (found.values, found.detail) == ({}, "there is no answers.safetensors among the outputs")
