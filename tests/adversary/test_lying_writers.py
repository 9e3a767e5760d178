"""Nodes that do not run the model that they were asked for, caught by fingerprints; honest drift is not punished. Seeds are fixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adversary.generations import CHEATS, HONEST, honest, measured, partly, parts
from tests.support.workload_runs import target_of

pytestmark = pytest.mark.timeout(400)
BOUND = float(target_of("generate")["activation"]["target"])
SEEDS = range(6)


@pytest.mark.parametrize("way", sorted(set(HONEST) - {"two threads"}))  # threads wait for each other on a busy machine
def test_honest_ways_of_writing_stay_far_below_the_bound(way: str) -> None:
    answers = HONEST[way]()
    assert max(measured(answers, seed) for seed in SEEDS) < BOUND / 10


@pytest.mark.parametrize("way", sorted(CHEATS))
def test_each_way_of_cheating_is_beyond_the_bound_whatever_is_drawn(way: str) -> None:
    answers = CHEATS[way]()
    if way == "lower precision (bfloat16)":
        assert not torch.equal(answers["values"], honest()["values"])
    assert min(measured(answers, seed) for seed in SEEDS) > 3 * BOUND


def test_a_share_of_bad_texts_is_found_as_often_as_one_is_drawn() -> None:
    """Eight of 64 texts are looked at: a quarter of bad ones is missed with (48 over 8) / (64 over 8), 8.5 %."""
    answers = partly(CHEATS["half of the layers"], 0.25, seed=1)
    caught = sum(measured(answers, seed) > BOUND for seed in range(24))
    assert caught >= 19


def test_files_that_are_no_answers_are_the_nodes_failure(tmp_path: Path) -> None:
    evaluate, good = parts()["evaluate"], honest()
    path = tmp_path / "answers.safetensors"
    wrong = {
        "not_safetensors": None,
        "tensor_missing": {name: good[name] for name in ("numbers", "places")},
        "tensor_unexpected": {**good, "zzz": torch.zeros(1)},
        "wrong_shape": {**good, "values": good["values"].double()},
        "out_of_range": {**good, "places": good["places"] + 60},
        "not_finite": {**good, "values": good["values"] / 0},
    }
    for code, tensors in wrong.items():
        path.write_bytes(b"nonsense")
        if tensors is not None:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        with pytest.raises(evaluate.Refused) as refused:
            evaluate.read_answers(path)
        assert refused.value.code == code
    changed = {name: tensor.numpy().copy() for name, tensor in good.items()}
    changed["numbers"][:, 0] = 5
    with pytest.raises(evaluate.Refused) as refused:
        evaluate.check(changed, 1, 8)
    assert refused.value.code == "prompt_changed"
