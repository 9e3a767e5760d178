"""`python -m benchmarks.gpu` is for a machine that is not here: what of it does not need a card is run on the CPU, small."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gpu
from torg_node.hardware.proof.paths import TorchArithmetic


@pytest.fixture
def path() -> TorchArithmetic:
    torch.set_num_threads(1)
    return TorchArithmetic("cpu")


def test_digests_are_compared_and_a_wrong_one_is_counted(
    path: TorchArithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.wrong_digests(path) == 0
    monkeypatch.setattr(path, "row_digests", lambda x: TorchArithmetic.row_digests(path, x) ^ 1)
    assert gpu.wrong_digests(path) == 4 * 256
    with pytest.raises(RuntimeError, match="disagree"):
        gpu.cost(path, 256, 1)


def test_its_walk_is_checked_without_memory(path: TorchArithmetic) -> None:
    figures = {each.name: each for each in gpu.walked(path, "cpu", small=True)}
    assert figures["walks that differ from NumPy's"].is_reached
    assert figures["memory filled"].value == 4096 * 256 / 2**30


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
