"""Checks that texts were written by this model in full precision: `python evaluate.py --model answers.safetensors --seed N [--count 8]`.

One pass over some of the finished texts, drawn by the seed, in numpy: a hundredth of the work of writing them. Prints one JSON line {"distance",
"wrong_symbols", "texts"}. `distance`: the largest relative difference of a fingerprint, |claimed - recomputed| / |recomputed| over the
places that either names; and at least the share of symbols that are not the most likely ones. A file that is anything but the expected
tensors is answered with {"error", "detail"} and exit code 2, and so is an `answers.txt` beside it that does not spell them; a wrong call with exit code 64. Reads model, vocabulary and prompts from its
own folder, nothing that the one who wrote could have touched, and executes nothing of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

Floats = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]

HERE = Path(__file__).resolve().parent
REFUSED, WRONG_CALL = 2, 64
MAX_FILE_BYTES = 4 << 20
TEXTS, CONTEXT, WIDTH, HEADS = 64, 64, 64, 4
PLACES, LARGEST = (15, 31, 47), 16
TIE = 1e-3  # logits nearer than this may come out in another order elsewhere
EXPECTED = {
    "numbers": ("I32", "<i4", (TEXTS, CONTEXT)),
    "places": ("I32", "<i4", (TEXTS, len(PLACES), LARGEST)),
    "values": ("F32", "<f4", (TEXTS, len(PLACES), LARGEST)),
}


def main(arguments: list[str] | None = None) -> int:
    options = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="answers.safetensors")
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--count", type=int, default=8, help="texts to look at")
    asked = options.parse_args(arguments)
    try:
        answers = read_answers(asked.model)
        check_spelling(answers, asked.model.with_name("answers.txt"))
        answer = check(answers, asked.seed, asked.count)
    except Refused as refused:
        print(json.dumps({"error": refused.code, "detail": refused.detail}))
        return REFUSED
    print(json.dumps(answer))
    return 0


@dataclass
class Refused(Exception):
    code: str
    detail: str


def check(answers: Tensors, seed: int, count: int) -> dict[str, float]:
    """Raises Refused prompt_changed."""
    chosen = np.sort(np.random.default_rng(seed).choice(TEXTS, size=min(count, TEXTS), replace=False))
    prompts = read_prompts()
    model, numbers = Model.load(HERE / "base.safetensors"), answers["numbers"][chosen].astype(np.int64)
    for row, index in zip(numbers, chosen, strict=True):
        if row[: len(prompts[index])].tolist() != prompts[index]:
            raise Refused("prompt_changed", f"text {index} does not begin with its prompt")
    hidden = model.hidden(numbers)
    written = np.arange(1, CONTEXT)[None] >= np.array([len(prompts[index]) for index in chosen])[:, None]
    logits = hidden[:, :-1] @ model.tensors["embedding.weight"].T
    short = logits.max(2) - np.take_along_axis(logits, numbers[:, 1:, None], 2)[..., 0] > TIE
    wrong = float((short & written).sum() / written.sum())
    distance = max(
        _difference(answers["places"][index, number], answers["values"][index, number], hidden[row, place])
        for row, index in enumerate(chosen)
        for number, place in enumerate(PLACES)
    )
    return {"distance": round(max(distance, wrong), 6), "wrong_symbols": round(wrong, 6), "texts": float(len(chosen))}


def check_spelling(answers: Tensors, texts: Path) -> None:
    """What people read is what was checked: all texts, exactly. Nothing where there is no such file. Raises Refused spelled_otherwise."""
    if not texts.is_file():
        return
    symbols = read_vocabulary().symbols
    expected = "\n---\n".join("".join(symbols[number] for number in row) for row in answers["numbers"].tolist()) + "\n"
    with texts.open("rb") as file:
        found = file.read(MAX_FILE_BYTES)
    if found != expected.encode():
        raise Refused("spelled_otherwise", f"{texts.name} is not what the numbers spell")


def _difference(places: NDArray[Any], values: NDArray[Any], hidden: Floats) -> float:
    """Of one fingerprint, over the places that it names and the ones that it should."""
    largest = np.sort(np.argsort(-np.abs(hidden), kind="stable")[:LARGEST])
    claimed, true = np.zeros_like(hidden), np.zeros_like(hidden)
    claimed[places] = values
    true[places], true[largest] = hidden[places], hidden[largest]
    border = np.abs(hidden[largest]).min()
    for place in set(largest) - set(places):  # two numbers of nearly one size may change places
        if np.abs(hidden[place]) - border < TIE * border:
            true[place] = 0.0
    return float(np.linalg.norm(claimed - true) / np.linalg.norm(true))


# --- the model, in numpy --------------------------------------------------------------------------------------------


@dataclass
class Model:
    tensors: dict[str, Floats]

    @classmethod
    def load(cls, path: Path) -> Model:
        found = dict(deserialize(path.read_bytes()))
        return cls({name: _as_floats(entry) for name, entry in found.items()})

    def hidden(self, numbers: NDArray[np.int64]) -> Floats:
        """The last hidden state, texts x places x WIDTH: what the trained net has within float rounding."""
        t = self.tensors
        x = t["embedding.weight"][numbers] + t["position.weight"][None, : numbers.shape[1]]
        for layer in range(sum(name.endswith("norm_feed.weight") for name in t)):
            x = x + self._attention(f"blocks.{layer}", _norm(x, t, f"blocks.{layer}.norm_attention"))
            fed = _norm(x, t, f"blocks.{layer}.norm_feed") @ t[f"blocks.{layer}.feed.0.weight"].T
            fed = _gelu(fed + t[f"blocks.{layer}.feed.0.bias"])
            x = x + fed @ t[f"blocks.{layer}.feed.2.weight"].T + t[f"blocks.{layer}.feed.2.bias"]
        return _norm(x, t, "norm")

    def _attention(self, block: str, x: Floats) -> Floats:
        batch, length, width = x.shape
        heads = (x @ self.tensors[f"{block}.query_key_value.weight"].T).reshape(batch, length, 3, HEADS, width // HEADS)
        query, key, value = heads.transpose(2, 0, 3, 1, 4)
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(width // HEADS)
        scores = np.where(np.tril(np.ones((length, length), dtype=bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        out: Floats = (
            attended.transpose(0, 2, 1, 3).reshape(batch, length, width) @ self.tensors[f"{block}.out.weight"].T
        )
        return out


def _norm(x: Floats, tensors: dict[str, Floats], name: str) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed: Floats = scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
    return normed


def _gelu(x: Floats) -> Floats:
    """x Phi(x), with the error function by Abramowitz and Stegun 7.1.26 (error below 1.5e-7)."""
    z = np.abs(x) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1.0 - poly * np.exp(-z * z))
    gelu: Floats = 0.5 * x * (1.0 + erf)
    return gelu


def _as_floats(entry: dict[str, Any]) -> Floats:
    kind = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
    return np.frombuffer(entry["data"], dtype=kind).reshape(entry["shape"]).astype(np.float64)


# --- files ----------------------------------------------------------------------------------------------------------


def read_vocabulary() -> Any:
    sys.path.insert(0, str(HERE))
    import bpe

    return bpe.Vocabulary(json.loads((HERE / "vocabulary.json").read_text()))


def read_prompts() -> list[list[int]]:
    """As the vocabulary spells them."""
    vocabulary = read_vocabulary()
    return [vocabulary.encode(line) for line in (HERE / "prompts.txt").read_text().splitlines()]


def read_answers(path: Path) -> Tensors:
    """Raises Refused: not_a_file, too_large, not_safetensors, tensor_missing, tensor_unexpected, wrong_shape, out_of_range, not_finite."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Refused("not_a_file", error.strerror or "unreadable") from error
    if len(content) > MAX_FILE_BYTES:
        raise Refused("too_large", f"more than {MAX_FILE_BYTES} bytes")
    try:
        entries = dict(deserialize(content))
    except SafetensorError as error:
        raise Refused("not_safetensors", str(error)[:200]) from error
    if wrong := sorted(EXPECTED.keys() ^ entries.keys()):
        raise Refused("tensor_missing" if wrong[0] in EXPECTED else "tensor_unexpected", ", ".join(wrong)[:200])
    answers = {name: _checked(name, entries[name]) for name in EXPECTED}
    for name, below in (("numbers", 512), ("places", WIDTH)):
        if answers[name].min() < 0 or answers[name].max() >= below:
            raise Refused("out_of_range", name)
    if not np.isfinite(answers["values"]).all():
        raise Refused("not_finite", "values")
    return answers


def _checked(name: str, entry: dict[str, Any]) -> NDArray[Any]:
    dtype, kind, shape = EXPECTED[name]
    if entry["dtype"] != dtype or tuple(entry["shape"]) != shape:
        raise Refused("wrong_shape", f"{name}: {entry['dtype']} {entry['shape']}, expected {dtype} {list(shape)}"[:200])
    return np.frombuffer(entry["data"], dtype=kind).reshape(shape)


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 by itself, which here means that the answers are bad."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_CALL, f"{self.prog}: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
