"""The marketplace's evaluator of fingerprints in the real sandbox, on texts that the real workload wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.adversary.generations import CHEATS, Answers, honest, parts
from tests.support.workload_runs import WORKLOADS
from torg_marketplace.ports import EvaluationFailed, Measurement
from torg_marketplace.simulation.world import Blobs
from torg_marketplace.workers.catalogue import FolderCatalogue
from torg_marketplace.workers.evaluator import SandboxEvaluator
from torg_protocol.errors import NotFound
from torg_protocol.ids import Digest

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(900)]


def spelled(answers: Answers) -> bytes:
    symbols = parts()["evaluate"].read_vocabulary().symbols
    return (
        "\n---\n".join("".join(symbols[number] for number in row) for row in answers["numbers"].tolist()) + "\n"
    ).encode()


async def evaluated(
    answers: Answers, folder: Path, *, texts: bytes | None = None, blobs: Blobs | None = None
) -> Measurement:
    catalogue, blobs = FolderCatalogue(WORKLOADS), blobs or Blobs()
    entry = catalogue.entry("generate")
    assert entry is not None
    assert (entry.policy, entry.better) == ("activation", "lower")
    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, folder / "answers.safetensors")
    content = {
        "answers.safetensors": (folder / "answers.safetensors").read_bytes(),
        "answers.txt": texts or spelled(answers),
    }
    files = {name: blobs.put(each).digest for name, each in content.items()}
    return await SandboxEvaluator(catalogue, blobs).evaluate(entry, entry.metric, files, 2**62)


async def test_the_right_models_texts_pass_and_others_do_not(tmp_path: Path) -> None:
    right = await evaluated(honest(), tmp_path)
    assert float(right.values["distance"]) < 3e-5
    assert right.values["texts"] == "8.000000"
    wrong = await evaluated(CHEATS["cached answers"](), tmp_path)
    assert float(wrong.values["distance"]) > 0.1


async def test_a_text_that_is_not_what_the_numbers_spell_is_the_nodes_failure(tmp_path: Path) -> None:
    """People read it; the numbers are what is recomputed."""
    for texts in (spelled(honest())[:-2], spelled(CHEATS["half of the layers"]()), b"\xff\x00"):
        found = await evaluated(honest(), tmp_path, texts=texts)
        assert (found.values, found.detail.partition(":")[0]) == ({}, "spelled_otherwise")


async def test_a_store_that_lost_the_answers_is_no_nodes_failure(tmp_path: Path) -> None:
    class Lost(Blobs):
        async def size(self, digest: Digest) -> int | None:
            return None

        async def fetch_to(self, digest: Digest, path: Path) -> None:
            raise NotFound("no such blob", code="blob_not_found", field="digest", value=digest)

    with pytest.raises(EvaluationFailed, match="the store does not hand over"):
        await evaluated(honest(), tmp_path, blobs=Lost())


async def test_a_reference_that_is_missing_is_no_nodes_failure(tmp_path: Path) -> None:
    """Whoever ran the job is neither blamed nor passed."""
    catalogue = tmp_path / "workloads"
    shutil.copytree(WORKLOADS / "generate", catalogue / "generate")
    (catalogue / "generate/base.safetensors").unlink()
    blobs, folder = Blobs(), FolderCatalogue(catalogue)
    entry = folder.entry("generate")
    assert entry is not None
    save_file({name: tensor.contiguous() for name, tensor in honest().items()}, tmp_path / "answers")
    content = {"answers.safetensors": (tmp_path / "answers").read_bytes(), "answers.txt": spelled(honest())}
    files = {name: blobs.put(each).digest for name, each in content.items()}
    with pytest.raises(EvaluationFailed, match="the evaluator ended"):
        await SandboxEvaluator(folder, blobs).evaluate(entry, entry.metric, files, 1)


async def test_outputs_without_answers_are_the_nodes_failure() -> None:
    catalogue = FolderCatalogue(WORKLOADS)
    entry = catalogue.entry("generate")
    assert entry is not None
    found = await SandboxEvaluator(catalogue, Blobs()).evaluate(entry, entry.metric, {}, 1)
    assert (found.values, found.detail) == ({}, "there is no answers.safetensors among the outputs")
