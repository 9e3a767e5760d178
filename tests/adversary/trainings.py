"""A small real training with a commitment per segment, honest and dishonest: what the relative step distance tells apart.

Real torch, real digits, the marketplace's own `compare`; only the sandbox is left out, so that hundreds of segments fit into seconds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from torg_marketplace.replay_segment import SCALARS, STATE
from torg_marketplace.rules.replay import Distance
from torg_marketplace.workers.comparison import compare

SEGMENTS, STEPS, BATCH, SEED = 24, 20, 64, 7
State = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How the steps of a segment are done. The defaults are the honest way."""

    threads: int = 1
    mkldnn: bool = True
    bf16: bool = False
    skipped: int = 0
    rate: float = 2e-3
    copies: bool = False  # claims the start as the end
    noise: float = 0.0  # made up: the start, plus noise as large as a step
    spoils: str = ""  # what beside the weights is not what it came to: a key of SPOILS


class Training:
    def __init__(self) -> None:
        torch.manual_seed(SEED)
        images, labels = load_digits(return_X_y=True)
        self._images = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
        self._labels = torch.tensor(labels)
        self._fresh = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.25), nn.Linear(64, 10),
        )  # fmt: skip

    def start(self) -> State:
        model = copy.deepcopy(self._fresh)
        return _taken(model, torch.optim.AdamW(model.parameters(), 2e-3), [])

    def segment(self, number: int, start: State, way: Way) -> State:
        """The state after the segment, done this way."""
        if way.copies:
            return start
        model = copy.deepcopy(self._fresh)
        model.load_state_dict(start["model"])
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        optimizer.load_state_dict(copy.deepcopy(start["optimizer"]))
        for group in optimizer.param_groups:
            group["lr"] = way.rate
        loss = 0.0
        with _kernels(way):
            for step in range(number * STEPS, (number + 1) * STEPS - way.skipped):
                loss = self._step(model, optimizer, step, bf16=way.bf16)
        state = _taken(model, optimizer, [*start["history"], loss])
        if way.spoils:
            SPOILS[way.spoils](state, start)
        if way.noise:
            torch.manual_seed(number)
            end = {name: value + way.noise * torch.randn_like(value) for name, value in start["model"].items()}
            return {**state, "model": end}
        return state

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, bf16: bool) -> float:
        torch.manual_seed(SEED * 1_000_003 + step)  # order and dropout are the spec's, not the prover's
        chosen = torch.randint(len(self._images), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = functional.cross_entropy(model(self._images[chosen]), self._labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


def distances(claimed_way: Way, numbers: list[int], replayed_way: Way | None = None) -> list[Distance]:
    """Of these segments of an honest training: claimed one way, replayed another, both from the same start."""
    training = Training()
    states = honest_states(max(numbers) + 1)
    found = []
    for number in numbers:
        state = states[number]
        claimed = training.segment(number, state, claimed_way)
        replayed = training.segment(number, state, replayed_way) if replayed_way else states[number + 1]
        found.append(measured(replayed, claimed, state))
    return found


@functools.cache
def honest_states(segments: int) -> list[State]:
    """The states between the first so many segments."""
    training = Training()
    states = [training.start()]
    for number in range(segments):
        states.append(training.segment(number, states[-1], Way()))
    return states


def measured(replayed: State, claimed: State, start: State) -> Distance:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, state in (("replayed", replayed), ("claimed", claimed), ("start", start)):
            path = Path(folder) / name
            path.mkdir()
            written(state, path)
            paths.append(path / STATE)
        return compare(*paths)


def written(state: State, folder: Path) -> None:
    """As the catalogue writes its checkpoints."""
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for index, fields in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in fields.items()}
    tensors["random.torch"] = state["random"]
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / STATE)
    scalars = {"seconds": time.monotonic(), "optimizer_groups": state["optimizer"]["param_groups"]}
    (folder / SCALARS).write_text(json.dumps(scalars | {"history": state["history"]}))


def _taken(model: nn.Module, optimizer: torch.optim.Optimizer, history: list[float]) -> State:
    return {
        "model": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "random": torch.get_rng_state(),
        "history": history,
    }


def _zeroed(fields: tuple[str, ...], only: int | None = None) -> Callable[[State, State], None]:
    def spoil(state: State, _start: State) -> None:
        for index, kept in state["optimizer"]["state"].items():
            for name in fields if only in (None, index) else ():
                kept[name] = torch.zeros_like(kept[name])

    return spoil


def _moments_of_the_start(state: State, start: State) -> None:
    state["optimizer"]["state"] = start["optimizer"]["state"]


def _another_rate(state: State, _start: State) -> None:
    state["optimizer"]["param_groups"][0]["lr"] *= 1.01


SPOILS: dict[str, Callable[[State, State], None]] = {
    "optimizer zeroed": _zeroed(("exp_avg", "exp_avg_sq", "step")),
    "first moments zeroed": _zeroed(("exp_avg",)),
    "second moments zeroed": _zeroed(("exp_avg_sq",)),
    "moments of the smallest tensor zeroed": _zeroed(("exp_avg", "exp_avg_sq"), only=5),
    "steps counted from nothing": _zeroed(("step",)),
    "moments of where it began": _moments_of_the_start,
    "another random generator": lambda state, _: state["random"].add_(1),
    "another learning rate noted": _another_rate,
    "losses made up": lambda state, _: state.update(history=[0.0] * len(state["history"])),
    "a loss less": lambda state, _: state["history"].pop(),
}


@contextlib.contextmanager
def _kernels(way: Way) -> Iterator[None]:
    threads, mkldnn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(way.threads)
    torch.backends.mkldnn.enabled = way.mkldnn  # type: ignore[assignment, unused-ignore]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment, unused-ignore]
