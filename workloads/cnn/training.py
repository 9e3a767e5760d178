"""The training itself. Its whole state can be taken out and put back between any two steps, so a training that was killed and
resumed ends with the same weights, bit for bit, as one that was not (same machine, same number of threads)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from checkpoints import Checkpoint
from data import Digits, vary
from model import DigitNet
from torch import Tensor
from torch.nn import functional

BATCH = 64


@dataclass(frozen=True)
class Settings:
    """What decides the result. A checkpoint of other settings is refused."""

    epochs: int
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """Losses are mean cross entropies; the training loss is smoothed and measured on varied images."""

    epoch: int
    loss: float
    held_out_loss: float
    accuracy: float  # on the held-out digits


class Training:
    def __init__(self, settings: Settings, digits: Digits) -> None:
        self.settings = settings
        self.digits = digits
        self.steps_per_epoch = -(-len(digits.images) // BATCH)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.history: list[EpochResult] = []

        torch.manual_seed(settings.seed)  # weights and dropout
        self._data_random = torch.Generator().manual_seed(settings.seed + 1_000_003)  # order and variations
        self._order = torch.empty(0, dtype=torch.int64)
        self._epoch_loss = 0.0
        self.model = DigitNet()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-2)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, 4e-3, total_steps=self.total_steps)

    def run(self, after_step: Callable[[], bool]) -> bool:
        """Trains to the end, or until `after_step` says stop. True when the training is complete."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            self._take_step()
            if self.epoch_is_complete:
                self._end_epoch()
            self.seconds += time.perf_counter() - started
            if after_step():
                break
        return self.step == self.total_steps

    @property
    def epoch_is_complete(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    def checkpoint(self) -> Checkpoint:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        optimizer = self._optimizer.state_dict()
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        tensors["random.torch"] = torch.get_rng_state()
        tensors["random.data"] = self._data_random.get_state()
        tensors["order"] = self._order
        scalars = {
            "settings": asdict(self.settings),
            "seconds": self.seconds,
            "epoch_loss": self._epoch_loss,
            "history": [asdict(result) for result in self.history],
            "optimizer_groups": optimizer["param_groups"],
            "schedule": self._schedule.state_dict(),
        }
        return Checkpoint(self.step, tensors, scalars)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError when the checkpoint belongs to a training with other settings."""
        tensors, scalars = checkpoint.tensors, checkpoint.scalars
        if scalars["settings"] != asdict(self.settings):
            raise ValueError(f"the checkpoint is of a training with {scalars['settings']}, not {asdict(self.settings)}")
        self.model.load_state_dict(_under("model.", tensors))
        self._optimizer.load_state_dict(
            {"state": _optimizer_state(tensors), "param_groups": _groups(scalars["optimizer_groups"])}
        )
        self._schedule.load_state_dict(scalars["schedule"])
        torch.set_rng_state(tensors["random.torch"])
        self._data_random.set_state(tensors["random.data"])
        self._order = tensors["order"]
        self._epoch_loss = scalars["epoch_loss"]
        self.history = [EpochResult(**result) for result in scalars["history"]]
        self.seconds = scalars["seconds"]
        self.step = checkpoint.step

    def _take_step(self) -> None:
        if self.epoch_is_complete:
            self._order = torch.randperm(len(self.digits.images), generator=self._data_random)
            self._epoch_loss = 0.0
        first = self.step % self.steps_per_epoch * BATCH
        chosen = self._order[first : first + BATCH]
        self.model.train()
        logits = self.model(vary(self.digits.images[chosen], self._data_random))
        loss = functional.cross_entropy(logits, self.digits.labels[chosen], label_smoothing=0.05)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self._epoch_loss += loss.item()
        self.step += 1

    def _end_epoch(self) -> None:
        self.model.eval()
        with torch.no_grad():
            logits = self.model(self.digits.held_out_images)
        labels = self.digits.held_out_labels
        result = EpochResult(
            epoch=self.step // self.steps_per_epoch,
            loss=self._epoch_loss / self.steps_per_epoch,
            held_out_loss=functional.cross_entropy(logits, labels).item(),
            accuracy=(logits.argmax(1) == labels).float().mean().item(),
        )
        self.history.append(result)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = tensor
    return state


def _groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**group, "betas": tuple(group["betas"])} for group in groups]  # JSON knows no tuples
