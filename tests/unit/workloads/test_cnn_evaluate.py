"""What the marketplace measures before it pays: the same numbers as torch, on digits that no node has seen, from a file that is
trusted in nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save
from safetensors.torch import load_file as load_torch_file
from torch import nn
from workloads.cnn import data, evaluate, model

from tests.support.cnn import CNN, Workspace

TARGET = float(yaml.safe_load((CNN / "job.yaml").read_text())["verify"]["target"])
WITHOUT_TORCH = """
import runpy, sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotInstalled())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def net() -> model.DigitNet:
    """Random weights, and statistics as if it had been trained, so that every term of the forward pass counts."""
    torch.manual_seed(11)
    net = model.DigitNet().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                assert tensor is not None
                tensor.uniform_(0.2, 1.8)
    return net


@pytest.fixture
def tensors(net: model.DigitNet) -> Tensors:
    return {name: tensor.numpy().copy() for name, tensor in net.weights().items()}


def ask(path: Path, capsys: pytest.CaptureFixture[str], seed: int = 1) -> tuple[int, dict[str, Any]]:
    code = evaluate.main(["--model", str(path), "--seed", str(seed)])
    (line,) = capsys.readouterr().out.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return code, answer


# --- the same numbers -----------------------------------------------------------------------------------------------


def assert_forward_equals_torch(net: model.DigitNet, tensors: Tensors) -> None:
    images, _ = evaluate.held_out_digits()
    varied = evaluate.vary(images, np.random.default_rng(3))
    with torch.no_grad():
        expected = net(torch.from_numpy(varied)).numpy()

    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(evaluate.forward(tensors, varied), expected, atol=1e-4, rtol=0)


def test_the_forward_pass_in_numpy_equals_torch(net: model.DigitNet, tensors: Tensors) -> None:
    assert_forward_equals_torch(net, tensors)


def test_the_forward_pass_of_a_trained_model_equals_torch(uninterrupted: Workspace) -> None:
    path = uninterrupted.outputs / "model.safetensors"
    net = model.DigitNet().eval()
    loaded = net.load_state_dict(load_torch_file(path), strict=False)

    assert loaded.unexpected_keys == []
    assert_forward_equals_torch(net, evaluate.read_model(path))


def test_it_judges_by_the_digits_that_the_training_holds_out() -> None:
    digits = data.load()
    images, labels = evaluate.held_out_digits()

    assert len(images) == len(digits.held_out_images) == 360
    assert np.array_equal(images, digits.held_out_images.numpy())
    assert np.array_equal(labels, digits.held_out_labels.numpy())


def test_variations_depend_on_the_secret_seed_alone() -> None:
    images, _ = evaluate.held_out_digits()
    varied = [evaluate.vary(images, np.random.default_rng(seed)) for seed in (5, 5, 6)]

    assert np.array_equal(varied[0], varied[1])
    assert not any(np.array_equal(one, other) for one, other in zip(varied[0], varied[2], strict=True))
    assert not any(np.array_equal(one, clean) for one, clean in zip(varied[0], images, strict=True))
    assert varied[0].min() >= 0.0
    assert varied[0].max() <= 1.0


def test_an_honest_model_passes_without_torch_alone_in_its_folder(uninterrupted: Workspace, tmp_path: Path) -> None:
    (tmp_path / "evaluate.py").write_bytes((CNN / "evaluate.py").read_bytes())
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-W",
            "error",
            "-c",
            WITHOUT_TORCH,
            "evaluate.py",
            "--model",
            uninterrupted.outputs / "model.safetensors",
            "--seed",
            str(2**63),
        ],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)

    assert answer["accuracy"] >= TARGET
    assert answer["samples"] == 1800
    assert answer["clean_accuracy"] == pytest.approx(uninterrupted.metrics()["accuracy"], abs=1e-6)


def test_the_same_seed_gives_the_same_answer(uninterrupted: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [ask(uninterrupted.outputs / "model.safetensors", capsys, seed) for seed in (1, 1, 2)]

    assert answers[0] == answers[1]
    assert answers[0][1]["accuracy"] != answers[2][1]["accuracy"]
    assert answers[0][1]["clean_accuracy"] == answers[2][1]["clean_accuracy"]


@pytest.mark.timeout(900)
def test_cheats_stay_below_the_target() -> None:
    cheats = ["untrained", "1 epoch", "2 epochs", "10 % of the data, 30 epochs"]
    chosen = [argument for cheat in cheats for argument in ("--case", cheat)]
    done = subprocess.run(
        [sys.executable, CNN / "calibrate.py", "--seeds", "1", "--evaluations", "2", *chosen],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]

    assert [name for name, *_ in rows] == cheats
    assert [name for name, _, _, _, highest, _ in rows if float(highest) >= TARGET] == []


# --- a file that is trusted in nothing ------------------------------------------------------------------------------


def changed(name: str, value: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value(tensors[name]) if callable(value) else value}


def poisoned(value: float) -> Callable[[Any], Any]:
    def poison(tensor: Any) -> Any:
        tensor.flat[-1] = value
        return tensor

    return poison


REFUSED_TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], str, str]] = {
    "missing": (
        lambda tensors: {k: v for k, v in tensors.items() if k != "conv2.bias"},
        "tensor_missing",
        "conv2.bias",
    ),
    "none at all": (lambda _: {}, "tensor_missing", ", ".join(sorted(evaluate.SHAPES))[:200]),
    "one too many": (changed("norm1.extra", np.zeros(1, "f4")), "tensor_unexpected", "norm1.extra"),
    "half precision": (
        changed("conv1.weight", lambda t: t.astype("f2")),
        "wrong_dtype",
        "conv1.weight: F16, expected F32",
    ),
    "double precision": (
        changed("norm3.bias", lambda t: t.astype("f8")),
        "wrong_dtype",
        "norm3.bias: F64, expected F32",
    ),
    "transposed": (
        changed("classify.weight", lambda t: t.T.copy()),
        "wrong_shape",
        "classify.weight: [256, 10], expected [10, 256]",
    ),
    "scalar": (changed("classify.bias", np.array(1, "f4")), "wrong_shape", "classify.bias: [], expected [10]"),
    "nan": (changed("conv3.weight", poisoned(np.nan)), "not_finite", "conv3.weight"),
    "infinite": (changed("norm2.running_var", poisoned(np.inf)), "not_finite", "norm2.running_var"),
    "negative variance": (changed("norm2.running_var", poisoned(-1e-6)), "negative_variance", "norm2.running_var"),
    "overflowing": (
        changed("conv2.weight", lambda t: t * 0 + 3e38),
        "not_finite",
        "the model's outputs are not finite numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_wrong_tensors_are_refused(
    case: str, tensors: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, detail = REFUSED_TENSORS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(change(tensors)))

    assert ask(path, capsys) == (2, {"error": code, "detail": detail})


def header(content: bytes, data: bytes = b"") -> bytes:
    return len(content).to_bytes(8, "little") + content + data


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file, as torch.save writes",
        (2**62).to_bytes(8, "little") + b"{}",
        header(b"{not json}"),
        header(b'{"conv1.bias":{"dtype":"F32","shape":[32],"data_offsets":[0,128]}}', b"\0" * 127),
        header(b'{"conv1.bias":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        header(b'{"conv1.bias":{"dtype":"object","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8),
    ],
)
def test_what_is_not_safetensors_is_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    code, answer = ask(path, capsys)

    assert (code, answer["error"]) == (2, "not_safetensors")


def test_a_pickle_is_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, marker = tmp_path / "model.safetensors", tmp_path / "was-run"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    code, answer = ask(path, capsys)

    assert (code, answer["error"]) == (2, "not_safetensors")
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  # the test's own: it would have worked
    assert marker.exists()


def test_a_file_over_the_limit_is_not_read(
    tensors: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors))
    with path.open("r+b") as file:
        file.truncate(64 << 30)  # sparse

    assert ask(path, capsys) == (2, {"error": "too_large", "detail": "more than 1048576 bytes"})


def test_only_a_regular_file_is_opened(tensors: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_bytes(save(tensors))
    link.symlink_to(real)
    os.mkfifo(pipe)
    refused = [ask(path, capsys) for path in (tmp_path / "none", link, pipe, tmp_path)]

    assert ask(real, capsys)[0] == 0
    assert refused == [
        (2, {"error": "not_a_file", "detail": "No such file or directory"}),
        (2, {"error": "not_a_file", "detail": "Too many levels of symbolic links"}),
        (2, {"error": "not_a_file", "detail": "not a regular file"}),
        (2, {"error": "not_a_file", "detail": "not a regular file"}),
    ]


@pytest.mark.parametrize(
    "arguments", [["--model", "x"], ["--model", "x", "--seed", "-1"], ["--model", "x", "--seed", "a"]]
)
def test_a_wrong_call_is_not_the_nodes_fault(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(arguments)

    assert stopped.value.code == 64
    assert capsys.readouterr().out == ""


def test_a_refusal_ends_the_process_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, CNN / "evaluate.py", "--model", tmp_path / "none", "--seed", "1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 2
    assert json.loads(done.stdout) == {"error": "not_a_file", "detail": "No such file or directory"}
    assert done.stderr == ""


def test_a_finished_model_holds_exactly_what_the_evaluator_expects(uninterrupted: Workspace) -> None:
    shapes = {name: tensor.shape for name, tensor in load_file(uninterrupted.outputs / "model.safetensors").items()}

    assert shapes == evaluate.SHAPES
