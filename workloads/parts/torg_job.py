"""Checkpoints, progress and results of a training job, for torch users. One file, to be copied beside your `train.py`.

    job = torg_job.Job(settings)
    job.track(model=model, optimizer=optimizer, batches=batches, history=history)
    for step in job.steps(total):          # goes on after the newest checkpoint, if there is one
        ...                                # one optimizer step
        job.report(step, loss=loss)
        job.checkpoint(step, due=step % 100 == 0)
    job.finish(model.state_dict(), {"accuracy": 0.98})

A training that was killed anywhere and started again ends with the same weights, bit for bit, as one that was not (same machine,
same threads), if everything that changes from step to step is tracked: model, optimizer, random generators, data order, history. Torch's
own random numbers are tracked without being named.

No pickle: tensors are safetensors, everything else is JSON, whose floats survive the round trip bit for bit. What is spoken with the
node are three environment variables and plain files; a job does as well without this module.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load, save

STOPPED = 128 + signal.SIGTERM
LARGEST = 2**63 - 1  # of a setting: seeds of torch are no larger
KEPT = 2  # the newest may be half uploaded when the next one appears
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Within:
    """A default of `parse_settings`, and what else than it will do: at most so much, multiples of that."""

    default: int
    most: int = LARGEST
    multiple_of: int = 1


def parse_settings(description: str | None, **defaults: int | Within) -> dict[str, int]:
    """`--name value` for each default, whole numbers. All of them decide the result; each counts something, 1 at least, but `seed`.
    Ends with 2 and a word for the setting that will not do."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, setting in defaults.items():
        setting = setting if isinstance(setting, Within) else Within(setting)
        kind = _whole_number(int(name != "seed"), setting)
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, default=setting.default, help=f"default: {setting.default}"
        )
    return vars(parser.parse_args())


def device() -> torch.device:
    """A GPU where the job was given one, else the CPU. Weights differ between the two; each resumes from its own bit for bit."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Job:
    """One process of a job: reads where things go from the environment, and stops at the end of a step on SIGTERM.

    A checkpoint of other `settings` is refused. $OMP_NUM_THREADS is obeyed, one thread without it: sums in another order differ.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.checkpoints = Path(os.environ.get("TORG_CHECKPOINT_DIR", "checkpoints"))
        self.outputs = Path(os.environ.get("TORG_OUTPUT_DIR", "outputs"))
        self.progress = Path(os.environ.get("TORG_PROGRESS_FILE", "progress.jsonl"))
        _make_writable(self.checkpoints, "TORG_CHECKPOINT_DIR")
        _make_writable(self.outputs, "TORG_OUTPUT_DIR")
        _make_writable(self.progress.parent, "TORG_PROGRESS_FILE")
        torch.set_num_threads(_threads())
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or CUDA's matrix products refuse the next line
        torch.use_deterministic_algorithms(True)
        self.settings = dict(settings)
        self.resumed_from_step = 0
        self._tracked: dict[str, Any] = {}
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._stop_asked = False
        self._asked = os.environ.get(
            "TORG_CHECKPOINT_AT", ""
        )  # by who executes a segment again: may be one that SIGTERM made
        self._total = 0
        signal.signal(signal.SIGTERM, self._note_stop)

    def track(self, **state: Any) -> None:
        """What a checkpoint holds: objects with `state_dict` and `load_state_dict`, torch generators, and lists, dicts and
        tensors, which are put back in place."""
        self._tracked |= state

    def steps(self, total: int) -> Iterator[int]:
        """The numbers of the steps still to do, `total` being the last. State is put back before the first of them. Ends with 1 when a checkpoint was
        asked for that none of them comes to."""
        self._total = total
        self._resume()
        match = _NAME.fullmatch(self._asked)
        if self._asked and not (match and self.resumed_from_step < int(match.group(1)) <= total):
            to_do = f"from step {self.resumed_from_step} to step {total}"
            raise SystemExit(f"TORG_CHECKPOINT_AT is {self._asked!r}: {to_do} there is none of that name")
        yield from range(self.resumed_from_step + 1, total + 1)

    def report(self, step: int, **figures: float) -> None:
        """One line for people, one for programs."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"step {step} of {self._total}  {shown}", flush=True)
        line = {"step": step, "total_steps": self._total} | {name: round(value, 6) for name, value in figures.items()}
        with self.progress.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def checkpoint(self, step: int, *, due: bool) -> None:
        """To be called after each step. Writes a checkpoint when it is due, after the last step, and when SIGTERM came: then the
        process ends, with 143."""
        if due or self._stop_asked or step == self._total or _name_of(step) == self._asked:
            self._write(step)
        if self._stop_asked:
            print(f"stopped at step {step}; a checkpoint is written", flush=True)
            _exit(STOPPED)

    def finish(self, model: Mapping[str, torch.Tensor] | None, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json and, unless it is None, model.safetensors."""
        if model is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
            _write_durably(self.outputs / "model.safetensors", save(tensors))
        about = {"seconds": round(self._seconds(), 3), "resumed_from_step": self.resumed_from_step}
        text = json.dumps({**metrics, **self.settings, **about}, indent=2)
        _write_durably(self.outputs / "metrics.json", f"{text}\n".encode())
        shown = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
        print("  ".join(f"{name} {_short(value)}" for name, value in shown.items()), flush=True)

    # --- checkpoints: a directory `step-00000123` that appears complete or not at all ------------------------------------

    def _write(self, step: int) -> None:
        """Written under a hidden name, flushed to the disk, then renamed. Older ones than the newest two go. Safe twice."""
        final = self.checkpoints / _name_of(step)
        if final.exists():
            return
        tensors: dict[str, torch.Tensor] = {}
        state = {name: _taken(value) for name, value in self._tracked.items()} | {"torch": _torch_random()}
        scalars = {
            "settings": self.settings,
            "seconds": self._seconds(),
            "state": _flattened(state, "state", tensors),
        }
        temporary = self.checkpoints / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_durably(temporary / "state.safetensors", save(tensors))
        _write_durably(temporary / "state.json", json.dumps(scalars).encode())
        _sync_directory(temporary)
        temporary.rename(final)
        _sync_directory(self.checkpoints)
        for _, old in self._complete()[:-KEPT]:
            if old.name != self._asked:  # who asked may look late
                shutil.rmtree(old)

    def _resume(self) -> None:
        for leftover in self.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        self._started = time.perf_counter()
        if not self._complete():
            return
        step, path = self._complete()[-1]
        scalars = json.loads((path / "state.json").read_text())
        if scalars["settings"] != self.settings:
            found = f"{path} is of a job with {scalars['settings']}, not {self.settings}"
            raise SystemExit(f"{found}; use the same options again, or another directory")
        state = _unflattened(scalars["state"], load((path / "state.safetensors").read_bytes()))
        for name, value in self._tracked.items():
            _put_back(value, state[name])
        _set_torch_random(state["torch"])
        self._seconds_before, self.resumed_from_step = scalars["seconds"], step
        print(f"resumed from step {step}", flush=True)

    def _complete(self) -> list[tuple[int, Path]]:
        found = [(match, path) for path in self.checkpoints.glob("step-*") if (match := _NAME.fullmatch(path.name))]
        return sorted((int(match.group(1)), path) for match, path in found)

    def _seconds(self) -> float:
        """Of training in all attempts, as far as they were not lost."""
        return self._seconds_before + time.perf_counter() - self._started

    def _note_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_asked = True


class Batches:
    """Indices of `count` examples in random order, again and again, `size` at a time; the last of an epoch may be fewer."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.per_epoch = -(-count // size)
        self._count, self._size, self._given = count, size, 0
        self._random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        if self._given % self.per_epoch == 0:
            self._order = torch.randperm(self._count, generator=self._random)
        first = self._given % self.per_epoch * self._size
        self._given += 1
        return self._order[first : first + self._size]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self._given, "random": self._random.get_state(), "order": self._order}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._given, self._order = saved["given"], saved["order"]
        self._random.set_state(saved["random"])


# --- state out and in ---------------------------------------------------------------------------------------------------


def _taken(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value.state_dict() if hasattr(value, "state_dict") else value


def _put_back(value: Any, saved: Any) -> None:
    match value:
        case torch.Generator():
            value.set_state(saved)
        case torch.Tensor():
            with torch.no_grad():
                value.copy_(saved)
        case list():
            value[:] = saved
        case dict():
            value.clear()
            value.update(saved)
        case _:
            value.load_state_dict(saved)


def _torch_random() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_torch_random(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])


def _flattened(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under their paths. JSON knows no tuples and no keys but texts."""
    match value:
        case torch.Tensor():
            tensors[path] = value.detach().cpu().contiguous().clone()  # cloned: tied weights share memory
            return {"tensor": path}
        case dict():
            items = [[key, _flattened(item, f"{path}.{key}", tensors)] for key, item in value.items()]
            return {"dict": items}
        case tuple() | list():
            items = [_flattened(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _unflattened(saved: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(saved, dict):
        return saved
    ((kind, inner),) = saved.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "dict":
            return {key: _unflattened(item, tensors) for key, item in inner}
        case "tuple":
            return tuple(_unflattened(item, tensors) for item in inner)
    return [_unflattened(item, tensors) for item in inner]


# --- files --------------------------------------------------------------------------------------------------------------


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exit(code: int) -> None:
    """At once: all is on disk, and tearing torch down takes a second that a stopping node does not have."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _make_writable(folder: Path, variable: str) -> None:
    """Found out before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SystemExit(f"{folder} cannot be written to ({error.strerror}): name another in {variable}") from error


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "1")
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(f"OMP_NUM_THREADS is {text!r}: a whole number from 1 on is needed, or none at all")
    return int(text)


def _whole_number(least: int, setting: Within) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value > setting.most:
            raise argparse.ArgumentTypeError(f"{value} is more than {setting.most}")
        if value % setting.multiple_of:
            below = value - value % setting.multiple_of
            near = " or ".join(
                str(good) for good in (below, below + setting.multiple_of) if least <= good <= setting.most
            )
            raise argparse.ArgumentTypeError(f"{value} is not a multiple of {setting.multiple_of}: try {near}")
        return value

    return number


def _short(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
