"""Texts of the catalogue's `generate` written as asked, and otherwise: what fingerprints of the last hidden state tell apart.

The workload's own code writes them, the marketplace's own evaluator checks them; only the sandbox is left out.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.support.workload_runs import WORKLOADS

FOLDER = WORKLOADS / "generate"
Answers = dict[str, torch.Tensor]
_PARTS = ("bpe", "language_model", "torg_job", "generate", "evaluate")


@functools.cache
def parts() -> dict[str, ModuleType]:
    """The workload's modules, imported from its folder without staying in anybody's way."""
    before = {name: sys.modules.pop(name, None) for name in _PARTS}
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in _PARTS}
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@functools.cache
def model() -> Any:
    made = parts()["language_model"].LanguageModel(512, 64).eval()
    made.load_state_dict({name: value.float() for name, value in load_file(FOLDER / "base.safetensors").items()})
    return made


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    vocabulary = parts()["bpe"].Vocabulary(json.loads((FOLDER / "vocabulary.json").read_text()))
    return tuple(tuple(vocabulary.encode(line)) for line in (FOLDER / "prompts.txt").read_text().splitlines())


@functools.cache
def honest() -> Answers:
    return written(model())


def written(with_model: Any, at_once: int = 64, threads: int = 1) -> Answers:
    """All texts, so many at once. One thread: on a busy machine several wait for each other far longer than they work."""
    lines = [list(prompt) for prompt in prompts()]
    starts = range(0, len(lines), at_once)
    with _setting(torch.get_num_threads, torch.set_num_threads, threads):
        found = [parts()["generate"].write(with_model, lines[first : first + at_once]) for first in starts]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def measured(answers: Answers, seed: int, count: int = 8) -> float:
    """The evaluator's distance over `count` texts that the seed draws."""
    tensors = {name: tensor.numpy() for name, tensor in answers.items()}
    evaluate = parts()["evaluate"]
    for name, (_, kind, shape) in evaluate.EXPECTED.items():
        assert tensors[name].shape == shape
        tensors[name] = tensors[name].astype(kind)
    return float(evaluate.check(tensors, seed, count)["distance"])


# --- ways to write that are not the one that was asked for -----------------------------------------------------------


def lower_precision() -> Answers:
    with torch.autocast("cpu", torch.bfloat16):
        return written(model())


def eight_bits() -> Answers:
    """Weights rounded to 255 steps per row, as serving engines do to double their throughput."""
    changed = copy.deepcopy(model())
    for parameter in changed.parameters():
        if parameter.dim() == 2:
            step = parameter.data.abs().amax(1, keepdim=True) / 127
            parameter.data = (parameter.data / step).round() * step
    return written(changed)


def smaller_model() -> Answers:
    changed = copy.deepcopy(model())
    del changed.blocks[1]
    return written(changed)


def with_the_right_fingerprints(cheap: Answers) -> Answers:
    """One pass of the right model over texts that another wrote gives the fingerprints: whoever knows the places computes no more."""
    cheap = {name: tensor.clone() for name, tensor in cheap.items()}
    numbers, generate = cheap["numbers"].long(), parts()["generate"]
    seen: list[torch.Tensor] = []
    handle = model().norm.register_forward_hook(lambda _module, _inputs, hidden: seen.append(hidden))
    with torch.no_grad(), _setting(torch.get_num_threads, torch.set_num_threads, 1):
        model()(numbers)
    handle.remove()
    for place, at in enumerate(generate.PLACES):
        largest = seen[0][:, at].abs().topk(generate.LARGEST).indices.sort(1).values
        cheap["places"][:, place], cheap["values"][:, place] = largest.int(), seen[0][:, at].gather(1, largest)
    return cheap


def smaller_model_with_the_right_fingerprints() -> Answers:
    return with_the_right_fingerprints(smaller_model())


def right_until_the_last_place() -> Answers:
    """The right model as far as fingerprints reach, half of its layers for the rest of each text."""
    changed, last = copy.deepcopy(model()), parts()["generate"].PLACES[-1]
    del changed.blocks[1]
    found = {name: tensor.clone() for name, tensor in honest().items()}
    numbers = found["numbers"].long()
    with torch.no_grad(), _setting(torch.get_num_threads, torch.set_num_threads, 1):
        for place in range(last + 2, numbers.shape[1]):
            numbers[:, place] = changed(numbers[:, :place])[:, -1].argmax(1)
    return {**found, "numbers": numbers.int()}


def anothers_fingerprints() -> Answers:
    """The right texts, each with the fingerprints of the next one."""
    return {name: tensor if name == "numbers" else tensor.roll(1, 0) for name, tensor in honest().items()}


def one_number_many_times() -> Answers:
    """Fingerprints that name one place of the hidden state sixteen times: fifteen fewer to get right."""
    changed = {name: tensor.clone() for name, tensor in honest().items()}
    largest = changed["values"].abs().argmax(2, keepdim=True)
    changed["places"][:] = changed["places"].gather(2, largest)
    changed["values"][:] = changed["values"].gather(2, largest)
    return changed


def cached_answers() -> Answers:
    """Each prompt gets what was written for the next one some time before, fingerprints and all."""
    moved = {name: tensor.roll(-1, 0).clone() for name, tensor in honest().items()}
    for row, prompt in zip(moved["numbers"], prompts(), strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return moved


def made_up_fingerprints() -> Answers:
    chance = torch.Generator().manual_seed(3)
    values = honest()["values"]
    return {**honest(), "values": values.roll(1, 0) * (1 + 0.1 * torch.randn(values.shape, generator=chance))}


CHEATS: dict[str, Callable[[], Answers]] = {
    "lower precision (bfloat16)": lower_precision,
    "weights in 8 bits": eight_bits,
    "half of the layers": smaller_model,
    "half of the layers, right fingerprints": smaller_model_with_the_right_fingerprints,
    "right until the last fingerprint": right_until_the_last_place,
    "another text's fingerprints": anothers_fingerprints,
    "one number many times": one_number_many_times,
    "cached answers": cached_answers,
    "made-up fingerprints": made_up_fingerprints,
}


# Texts of a cheaper arithmetic that are mostly the right ones, symbol for symbol, with fingerprints of the right model.
NEARLY_RIGHT: dict[str, Callable[[], Answers]] = {
    "bfloat16, right fingerprints": lambda: with_the_right_fingerprints(lower_precision()),
    "8 bits, right fingerprints": lambda: with_the_right_fingerprints(eight_bits()),
}


# --- ways that only look different -----------------------------------------------------------------------------------


def eight_at_a_time() -> Answers:
    """As the workload itself does."""
    return written(model(), at_once=8)


def two_threads() -> Answers:
    return written(model(), threads=2)


def other_kernels() -> Answers:
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment, unused-ignore]
    try:
        return written(model())
    finally:
        torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment, unused-ignore]


HONEST: dict[str, Callable[[], Answers]] = {
    "as asked": honest,
    "eight texts at a time": eight_at_a_time,
    "two threads": two_threads,
    "other kernels": other_kernels,
}


def partly(cheat: Callable[[], Answers], share: float, seed: int) -> Answers:
    """Honest but for a share of the texts."""
    chance = np.random.default_rng(seed)
    bad = torch.from_numpy(chance.choice(64, size=round(64 * share), replace=False))
    mixed, wrong = {name: tensor.clone() for name, tensor in honest().items()}, cheat()
    for name, tensor in mixed.items():
        tensor[bad] = wrong[name][bad]
    return mixed


@contextlib.contextmanager
def _setting(read: Callable[[], int], write: Callable[[int], None], value: int) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)
