"""How far what was claimed is from what a replay came to: all of a checkpoint, each part by its own measure.

| part | measure |
|---|---|
| weights, other floats | relative step distance of all tensors of one object together, TOLERANCE at most |
| moments of an optimizer | relative step distance of each tensor, MOMENTS_TOLERANCE at most |
| whole numbers, random generators, order of the data, counted steps | equal |
| numbers of state.json | relative difference, TOLERANCE at most; of its `history`, which nothing goes on from, NOTED_TOLERANCE |
| anything else of state.json | equal; but for `seconds`, which is the machine's |

The distance is that of the part that is furthest beyond what it may be, in units of TOLERANCE. Of what strangers wrote nothing is read that is not of
the shape of what the replay came to, and no file makes it fail.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from torg_marketplace.replay_segment import SCALARS, STATE
from torg_marketplace.rules.replay import MOMENTS_TOLERANCE, NOTED_TOLERANCE, TOLERANCE, Distance

Floats = NDArray[np.float64]

ALTERED = 0.1
_MODEL_PREFIXES = ("state.model.", "model.")
_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg"})
_MOMENTS = _SQUARES | {"exp_avg", "momentum_buffer", "grad_avg"}
_COUNTED = "step"  # Adam keeps it as a float
_FLOOR = 1e-3  # of the same moments of its neighbours: what is smaller may be the noise of a gradient that is nothing
_HISTORY, _SECONDS = "history", "seconds"
_NOTED_FLOOR = 0.01  # a loss that is nearly nothing may be twice nothing
_LONGER_BY = 1 << 16
_BROKEN = (SafetensorError, OSError, TypeError, KeyError, ValueError, RecursionError)


class Unsound(Exception):
    """A checkpoint that cannot be gone on from."""


@dataclass
class _Apart:
    """The part that is furthest off. `value`: in units of TOLERANCE."""

    value: float = 0.0
    where: str = ""

    def note(self, distance: float, limit: float, where: str) -> None:
        value = distance if limit == TOLERANCE else distance / limit * TOLERANCE
        if math.isnan(value):
            value = math.inf
        if value > self.value:
            self.value, self.where = value, where

    def note_unequal(self, where: str) -> None:
        self.note(1.0, TOLERANCE, where)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint (its folder; or what a node hands over of it, in one file), or the bare file of a model: then `scalars` is None."""

    file: Any
    layouts: dict[str, tuple[str, tuple[int, ...]]]
    scalars: str | None

    @classmethod
    def of(cls, path: Path, file: Any) -> _Saved:
        layouts = {name: _layout(file, name) for name in file.keys()}  # noqa: SIM118 # no mapping
        beside = path.with_name(SCALARS)
        if path.name == STATE and beside.is_file():
            return cls(file, layouts, beside.read_text())
        return cls(file, layouts, (file.metadata() or {}).get(SCALARS))

    def floats(self, name: str) -> Floats:
        found: Floats = self.file.get_tensor(name).astype(np.float64)
        return found

    def objects(self) -> dict[str, list[str]]:
        """Names of floats that are neither moments nor counts, by whose they are: `state.model.`, `generator.`; all of a bare file are one's."""
        found: dict[str, list[str]] = {}
        for name, (kind, _) in self.layouts.items():
            if kind in _FLOATING and not _is_of_optimizer(name):
                found.setdefault("" if self.scalars is None else _owner(name), []).append(name)
        return found


def compare(replayed: Path, claimed: Path, start: Path) -> Distance:
    """`start`: where both began; weights are measured against themselves without it."""
    try:
        if claimed.name == STATE and (strange := _strange(claimed.parent)):
            return Distance(None, detail=f"the claimed checkpoint has {strange}")
        with safe_open(replayed, framework="numpy") as mine, safe_open(claimed, framework="numpy") as theirs:
            return _compared(_Saved.of(replayed, mine), _Saved.of(claimed, theirs), start)
    except _BROKEN as error:
        return Distance(None, detail=f"what was claimed cannot be read: {error}")


def check_sound(state: Path) -> None:
    """That a checkpoint can be gone on from at all. Raises Unsound."""
    try:
        with safe_open(state, framework="numpy") as file:
            saved = _Saved.of(state, file)
            if not all(np.isfinite(saved.floats(name)).all() for name in saved.layouts if _is_float(saved, name)):
                raise Unsound("its numbers are not all numbers")
            if saved.scalars is not None:
                json.loads(saved.scalars)
    except _BROKEN as error:
        raise Unsound(f"it cannot be read: {error}") from error


def alter(state: Path, claimed: Path, seed: int) -> None:
    """Moves each of the model's weights by about ALTERED of the way that it goes in the segment: too little to be seen in what the training makes
    of them, far more than its answer may differ. What does not move (a frozen layer) stays; no sign changes (a variance must not)."""
    tensors, after = load_file(state), _weights(load_file(claimed))
    before, chance = _weights(tensors), np.random.default_rng(seed)
    for name, value in tensors.items():
        short = next((name.removeprefix(prefix) for prefix in _MODEL_PREFIXES if name.startswith(prefix)), name)
        if value.dtype.kind != "f" or short not in before:
            continue
        change = chance.standard_normal(value.shape) * np.abs(after[short] - before[short]) * ALTERED
        tensors[name] = (value + np.clip(change, -np.abs(value) / 2, np.abs(value) / 2)).astype(value.dtype)
    save_file(tensors, state)


def take_over_time(original: Path, written: Path) -> None:
    """A checkpoint of the catalogue says how long its training took so far, which nodes can compare with its `useful_ms`."""
    said, ours = (json.loads((folder / SCALARS).read_text()) for folder in (original, written))
    (written / SCALARS).write_text(json.dumps(ours | {_SECONDS: said[_SECONDS]}))


def _compared(mine: _Saved, theirs: _Saved, start: Path) -> Distance:
    if mine.layouts != theirs.layouts:
        return Distance(None, detail="the claimed weights are of another model")
    apart = _Apart()
    with _opened(start) as before, np.errstate(all="ignore"):
        for owner, names in mine.objects().items():
            known = _beginning(names, mine, before)
            off, gone = _off_and_gone(names, mine, theirs, before, known)
            if not math.isfinite(off) or not math.isfinite(gone):
                return Distance(None, detail="the claimed weights are not all numbers")
            if off:
                apart.note(off / gone if gone else 1.0, TOLERANCE, "" if owner in ("", *_MODEL_PREFIXES) else owner)
        _note_state(mine, theirs, before, apart)
    if mine.scalars is not None:
        _note_scalars(mine.scalars, theirs.scalars, apart)
    if apart.value <= TOLERANCE or not apart.where:
        return Distance(apart.value, bit_equal=apart.value == 0)
    return Distance(apart.value, detail=f"{apart.where} is not what the training comes to")


def _off_and_gone(
    names: list[str], mine: _Saved, theirs: _Saved, before: _Saved | None, known: Mapping[str, str]
) -> tuple[float, float]:
    """How far the two are apart, and how far the claimed one is from where it began."""
    off = gone = 0.0
    for name in names:
        a, b = mine.floats(name), theirs.floats(name)
        began = before.floats(known[name]) if before is not None and name in known else 0.0
        off += float(np.square(a - b).sum())
        gone += float(np.square(b - began).sum())
    return math.sqrt(off), math.sqrt(gone)


def _beginning(names: list[str], mine: _Saved, before: _Saved | None) -> dict[str, str]:
    """What these are called where the segment begins: a bare model has no prefix, its checkpoint has. Raises ValueError when that is another model."""
    if before is None:
        return {}
    known = {name: name for name in names if name in before.layouts}
    if not known and mine.scalars is None:
        for owner, candidates in before.objects().items():
            short = {candidate.removeprefix(owner): candidate for candidate in candidates}
            if short.keys() >= set(names):
                known = {name: short[name] for name in names}
                break
    if any(before.layouts[known[name]] != mine.layouts[name] for name in known):
        raise ValueError("where it begins there is another model")
    return known


def _note_state(mine: _Saved, theirs: _Saved, before: _Saved | None, apart: _Apart) -> None:
    """Moments, and what must be equal."""
    neighbours = _neighbours(mine)
    for name in mine.layouts:
        if not _is_float(mine, name) or _last(name) == _COUNTED:
            if not np.array_equal(mine.file.get_tensor(name), theirs.file.get_tensor(name)):
                apart.note_unequal(name)
        elif _last(name) in _MOMENTS:
            a, b = mine.floats(name), theirs.floats(name)
            began = np.zeros_like(a)
            if before is not None and before.layouts.get(name) == mine.layouts[name]:
                began = before.floats(name)
            floor = _FLOOR**2 if _last(name) in _SQUARES else _FLOOR
            gone = max(_length(a - began), _length(b - began), neighbours[_kind(name)] * floor * math.sqrt(a.size))
            if off := _length(a - b):
                apart.note(off / gone, MOMENTS_TOLERANCE, name)


def _neighbours(saved: _Saved) -> dict[str, float]:
    """The size of a number among all moments of one kind of one optimizer."""
    sums: dict[str, tuple[float, int]] = {}
    for name in saved.layouts:
        if _last(name) in _MOMENTS:
            value = saved.floats(name)
            total, count = sums.get(_kind(name), (0.0, 0))
            sums[_kind(name)] = total + float(np.square(value).sum()), count + value.size
    return {kind: math.sqrt(total / max(count, 1)) for kind, (total, count) in sums.items()}


def _note_scalars(mine: str, theirs: str | None, apart: _Apart) -> None:
    """Raises ValueError, RecursionError."""
    if theirs is None or len(theirs) > 2 * len(mine) + _LONGER_BY:
        apart.note_unequal(SCALARS)
        return
    ours, claimed = json.loads(mine), json.loads(theirs)
    if isinstance(ours, dict) and isinstance(claimed, dict):
        ours.pop(_SECONDS, None)
        took = claimed.pop(_SECONDS, 0.0)
        if not isinstance(took, int | float) or not 0 <= took < math.inf:
            apart.note_unequal(f"{SCALARS}: {_SECONDS}")
    _note_values(ours, claimed, SCALARS, TOLERANCE, apart)


def _note_values(mine: Any, theirs: Any, where: str, limit: float, apart: _Apart) -> None:
    """JSON; entries of a dict are pairs of a name and a value where names may be numbers."""
    if type(mine) is not type(theirs):
        apart.note_unequal(where)
    elif isinstance(mine, dict) and mine.keys() == theirs.keys():
        for name, value in mine.items():
            inner = NOTED_TOLERANCE if name == _HISTORY else limit
            _note_values(value, theirs[name], f"{where}: {name}", inner, apart)
    elif isinstance(mine, list) and len(mine) == len(theirs):
        is_pair = len(mine) == 2 and isinstance(mine[0], str)
        inner = NOTED_TOLERANCE if is_pair and mine[0] == _HISTORY else limit
        for a, b in zip(mine, theirs, strict=True):
            _note_values(a, b, f"{where}: {mine[0]}" if is_pair else where, inner, apart)
    elif isinstance(mine, float) and not (mine == theirs or (math.isnan(mine) and math.isnan(theirs))):
        size = max(abs(mine), abs(theirs), _NOTED_FLOOR / NOTED_TOLERANCE if limit == NOTED_TOLERANCE else 0.0)
        apart.note(abs(mine - theirs) / size, limit, where)
    elif not isinstance(mine, float) and mine != theirs:
        apart.note_unequal(where)


def _strange(folder: Path) -> str:
    """What is in a claimed checkpoint and is in none of the catalogue's, or the other way round."""
    names = {path.name for path in folder.iterdir()}
    return ", ".join(sorted(names ^ {STATE, SCALARS}))[:200]


@contextlib.contextmanager
def _opened(start: Path) -> Iterator[_Saved | None]:
    """Where the segment begins; None: from nothing."""
    if not start.exists():
        yield None
        return
    with safe_open(start, framework="numpy") as file:
        yield _Saved.of(start, file)


def _weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floating ones of the model, by their names in it; all, when none is marked as such (a bare model file)."""
    floating = {
        name: value.astype(np.float64)
        for name, value in tensors.items()
        if value.dtype.kind == "f" and not _is_of_optimizer(name)
    }
    for prefix in _MODEL_PREFIXES:
        found = {name.removeprefix(prefix): value for name, value in floating.items() if name.startswith(prefix)}
        if found:
            return found
    return floating


def _owner(name: str) -> str:
    """`state.model.0.weight` is of `state.model.`, `model.0.weight` of `model.`"""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "state" else 1]) + "."


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_of_optimizer(name: str) -> bool:
    """A moment, or a count of steps."""
    return _last(name) in _MOMENTS or _last(name) == _COUNTED


def _kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".", name)


def _layout(file: Any, name: str) -> tuple[str, tuple[int, ...]]:
    tensor = file.get_slice(name)
    return tensor.get_dtype(), tuple(tensor.get_shape())


def _is_float(saved: _Saved, name: str) -> bool:
    return saved.layouts[name][0] in _FLOATING


def _length(values: Floats) -> float:
    return float(np.sqrt(np.square(values).sum()))
