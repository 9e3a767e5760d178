"""Nodes that do not run the model that they were asked for, caught by fingerprints; honest drift is not punished. Seeds are fixed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.adversary.generations import CHEATS, HONEST, NEARLY_RIGHT, honest, measured, partly, parts
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


@pytest.mark.parametrize("way", sorted(NEARLY_RIGHT))
def test_what_passes_with_the_right_fingerprints_is_the_right_text(way: str) -> None:
    """A cheaper arithmetic that comes to the same symbols cannot be told from the right one, and needs not be: one wrong symbol is noticed
    wherever in a drawn text it is."""
    answers = NEARLY_RIGHT[way]()
    same = (answers["numbers"] == honest()["numbers"]).all(1).numpy()
    for seed in range(8):
        drawn = np.random.default_rng(seed).choice(len(same), size=8, replace=False)
        distance = measured(answers, seed)
        assert (distance < BOUND / 10) if same[drawn].all() else (distance > BOUND)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_makes_the_evaluator_fail(tmp_path: Path, data: st.DataObject) -> None:
    """A verdict that cannot be reached blames nobody: whoever could bring that about would cheat for free."""
    evaluate, path = parts()["evaluate"], tmp_path / "answers.safetensors"
    tensors = {name: tensor.clone().contiguous() for name, tensor in honest().items()}
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)))):
        flat, extremes = (
            tensors[name].view(-1),
            (0, -1, 63, 511, 3e38, -3e38, 1e-45) if name == "values" else (0, 1, 63, 511),
        )
        for at in data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=8)):
            flat[at] = data.draw(st.sampled_from(extremes))
    save_file(tensors, path)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, 400), max_size=3)):  # its header is there
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 100, 8, 0]))])
    with contextlib.suppress(evaluate.Refused):
        found = evaluate.check(evaluate.read_answers(path), data.draw(st.integers(0, 2**63 - 1)), 2)
        assert found["distance"] >= 0


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
