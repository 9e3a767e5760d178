"""Measures a model for the marketplace, before anybody is paid: `python evaluate.py --model model.safetensors --seed N`.

The digits are public, so the held-out ones are varied with a seed that only the marketplace knows: shifted, darkened, made noisy.
Prints one JSON line {"accuracy", "samples", "clean_accuracy"}. A model file that is anything but the expected tensors is answered
with {"error", "detail"} and exit code 2; a wrong call with exit code 64. Needs numpy, scikit-learn and safetensors; stands alone on
purpose: it imports nothing that the one who trained could have touched, and nothing in the model file is ever executed.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Floats = NDArray[np.float32]

MODEL_REFUSED, WRONG_CALL = 2, 64
MAX_FILE_BYTES = 1 << 20  # the model has 237 kB
HELD_OUT = 360
VARIATIONS = 5  # of each held-out digit
BATCH_NORM_EPSILON = 1e-5

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (32, 1, 3, 3),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 3, 3),
    "conv2.bias": (64,),
    "conv3.weight": (64, 64, 3, 3),
    "conv3.bias": (64,),
    "classify.weight": (10, 256),
    "classify.bias": (10,),
    **{
        f"norm{layer}.{field}": (channels,)
        for layer, channels in ((1, 32), (2, 64), (3, 64))
        for field in ("weight", "bias", "running_mean", "running_var")
    },
}


def main(arguments: list[str] | None = None) -> int:
    options = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--seed", type=_seed, required=True)
    asked = options.parse_args(arguments)
    try:
        answer: dict[str, Any] = evaluate(read_model(asked.model), asked.seed)
    except ModelRefused as refused:
        print(json.dumps({"error": refused.code, "detail": refused.detail}))
        return MODEL_REFUSED
    print(json.dumps(answer))
    return 0


@dataclass
class ModelRefused(Exception):
    code: str
    detail: str


def evaluate(model: dict[str, Floats], seed: int) -> dict[str, Any]:
    """Raises ModelRefused (not_finite) when the weights, finite themselves, overflow."""
    images, labels = held_out_digits()
    random = np.random.default_rng(seed)
    varied = [accuracy(model, vary(images, random), labels) for _ in range(VARIATIONS)]
    return {
        "accuracy": round(float(np.mean(varied)), 6),
        "samples": VARIATIONS * len(labels),
        "clean_accuracy": round(accuracy(model, images, labels), 6),
    }


def accuracy(model: dict[str, Floats], images: Floats, labels: NDArray[np.int64]) -> float:
    return float(np.mean(forward(model, images).argmax(axis=1) == labels))


def held_out_digits() -> tuple[Floats, NDArray[np.int64]]:
    """The 360 digits that the training's own split holds out."""
    pixels, labels = load_digits(return_X_y=True)
    _, images, _, held_out = train_test_split(
        pixels / 16.0, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    return images.astype(np.float32).reshape(-1, 1, 8, 8), held_out


def vary(images: Floats, random: np.random.Generator) -> Floats:
    """Each image on its own: shifted by up to one pixel, intensity 0.6 to 1.1, noise of 8 % of the range."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifts = random.integers(0, 3, size=(len(images), 2))
    shifted = np.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, shifts, strict=True)])
    intensity = random.uniform(0.6, 1.1, size=(len(images), 1, 1, 1))
    noise = random.normal(0.0, 0.08, size=images.shape)
    return np.clip(shifted * intensity + noise, 0.0, 1.0).astype(np.float32)


# --- the net, in numpy ----------------------------------------------------------------------------------------------


def forward(model: dict[str, Floats], images: Floats) -> Floats:
    """Logits, N x 10. Equal to the trained net's within float rounding. Raises ModelRefused when they are not finite."""
    with np.errstate(all="ignore"):  # what goes wrong is seen in the logits
        x = _block(model, 1, images.transpose(0, 2, 3, 1))  # channels last: the windows below are then cheap to copy
        x = _halve(_block(model, 2, x))
        x = _halve(_block(model, 3, x))
        features = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        logits: Floats = features @ model["classify.weight"].T + model["classify.bias"]
    if not np.isfinite(logits).all():
        raise ModelRefused("not_finite", "the model's outputs are not finite numbers")
    return logits


def _block(model: dict[str, Floats], layer: int, x: Floats) -> Floats:
    """Convolution 3 x 3, batch normalisation with the stored statistics, ReLU."""
    batch, height, width, channels = x.shape
    weight = model[f"conv{layer}.weight"]
    windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * channels)
    out = columns @ weight.transpose(2, 3, 1, 0).reshape(9 * channels, -1) + model[f"conv{layer}.bias"]
    scale = model[f"norm{layer}.weight"] / np.sqrt(model[f"norm{layer}.running_var"] + np.float32(BATCH_NORM_EPSILON))
    out = (out - model[f"norm{layer}.running_mean"]) * scale + model[f"norm{layer}.bias"]
    rectified: Floats = np.maximum(out, 0).reshape(batch, height, width, -1)
    return rectified


def _halve(x: Floats) -> Floats:
    """The largest of each 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    pooled: Floats = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return pooled


# --- the file, which a stranger wrote -------------------------------------------------------------------------------


def read_model(path: Path) -> dict[str, Floats]:
    """Raises ModelRefused: not_a_file, too_large, not_safetensors, tensor_missing, tensor_unexpected, wrong_dtype,
    wrong_shape, not_finite, negative_variance."""
    try:
        entries = dict(deserialize(_read_bounded(path)))
    except SafetensorError as error:
        raise ModelRefused("not_safetensors", _short(error)) from error
    if missing := sorted(SHAPES.keys() - entries.keys()):
        raise ModelRefused("tensor_missing", _short(", ".join(missing)))
    if unexpected := sorted(entries.keys() - SHAPES.keys()):
        raise ModelRefused("tensor_unexpected", _short(", ".join(unexpected)))
    return {name: _checked(name, entries[name]) for name in SHAPES}


def _checked(name: str, entry: dict[str, Any]) -> Floats:
    if entry["dtype"] != "F32":
        raise ModelRefused("wrong_dtype", f"{name}: {entry['dtype']}, expected F32")
    if tuple(entry["shape"]) != SHAPES[name]:
        raise ModelRefused("wrong_shape", f"{name}: {_short(entry['shape'])}, expected {list(SHAPES[name])}")
    tensor = np.frombuffer(entry["data"], dtype="<f4").reshape(SHAPES[name])
    if not np.isfinite(tensor).all():
        raise ModelRefused("not_finite", name)
    if name.endswith("running_var") and (tensor < 0).any():
        raise ModelRefused("negative_variance", name)
    return tensor


def _read_bounded(path: Path) -> bytes:
    """Never follows a link, never blocks on a pipe, never reads more than the limit, whatever grows meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelRefused("not_a_file", error.strerror or "unreadable") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModelRefused("not_a_file", "not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise ModelRefused("too_large", f"more than {MAX_FILE_BYTES} bytes")
    return content


def _short(detail: object) -> str:
    return str(detail)[:200]


# --- the call -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 by itself, which here means that the model is bad."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_CALL, f"{self.prog}: {message}\n")


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError("a seed is not negative")
    return seed


if __name__ == "__main__":
    sys.exit(main())
