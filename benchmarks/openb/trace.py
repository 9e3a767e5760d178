"""The public OpenB trace (Alibaba, as published with the FGD scheduler simulator): nodes and pods, and the published protocol's
streams of arrivals. The files are read from where the user keeps them and never copied.

Protocol: pods are cut at random, or topped up by drawing again with replacement, until they ask for 130 % of the cluster's GPUs;
shuffled per seed; node order is permuted per seed. Published seeds belong to another language's generator, so ours differ, and
policies are compared on the same streams.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

WHOLE_MILLI = 1000
ARRIVING = 1.3  # of the cluster's GPUs
SEEDS = tuple(range(42, 52))
VARIANTS = ("default", "multigpu50", "gpushare100", "gpuspec33")
_NODES = "openb_node_list_gpu_node.csv"
_HOW = f"give --traces DIR, a folder with {_NODES} and openb_pod_list_*.csv (the OpenB trace), or set TORG_CORPORA to one that holds traces/openb"
_CHOSEN: list[Path] = []  # by --traces
_CHOSEN_NODES: list[Path] = []  # by --nodes
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TraceNode:
    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Pod:
    """`gpu_milli` is of each GPU; `models` is empty for any. Times are seconds, None where the trace has none."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    models: frozenset[str]
    created_s: int | None = None
    lasts_s: int | None = None

    @property
    def gpu_milli_in_all(self) -> int:
        return self.gpus * self.gpu_milli


def add_traces_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", type=_chosen, metavar="DIR", help="where the trace's files are; else $TORG_CORPORA/traces/openb"
    )


def add_nodes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_chosen_nodes, metavar="FILE", help="another node list than the trace's own")


def _chosen_nodes(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    _CHOSEN_NODES[:] = [path]
    return path


def _chosen(text: str) -> Path:
    path = Path(text).expanduser()
    if not any(path.glob("openb_pod_list_*.csv")):
        raise argparse.ArgumentTypeError(f"{text} holds no openb_pod_list_*.csv")
    _CHOSEN[:] = [path]
    return path


def folder(holding: str) -> Path:
    """The chosen one, or that of the corpora, whichever holds such a file. Ends the process with what to set when neither does."""
    corpora = os.environ.get("TORG_CORPORA")
    asked = [*_CHOSEN, *([Path(corpora) / "traces" / "openb"] if corpora else [])]
    for path in asked:
        if any(path.glob(holding)):
            return path
    sys.exit(f"no {holding} in {', '.join(map(str, asked)) or 'any folder'}: {_HOW}")


def variants() -> list[str]:
    """Those whose files are there: the four known ones first, then any others."""
    found = {path.stem.removeprefix("openb_pod_list_") for path in folder(_pods_file("*")).glob(_pods_file("*"))}
    return [name for name in VARIANTS if name in found] + sorted(found - set(VARIANTS))


@cache
def nodes() -> tuple[TraceNode, ...]:
    return _read(_CHOSEN_NODES[0] if _CHOSEN_NODES else folder(_NODES) / _NODES, _node)


@cache
def pods(variant: str) -> tuple[Pod, ...]:
    """Of a variant's name, or of a file like the trace's."""
    if (path := Path(variant).expanduser()).suffix == ".csv":
        return _read(path, _pod)
    return _read(folder(_pods_file(variant)) / _pods_file(variant), _pod)


def title(variant: str) -> str:
    """Short, for a table; of a file its name."""
    return Path(variant).stem.removeprefix("openb_pod_list_")


def _read(path: Path, build: Callable[[dict[str, str]], R]) -> tuple[R, ...]:
    """Ends the process with file, line and column of what is wrong."""
    try:
        with path.open(newline="") as file:
            lines = csv.DictReader(file)
            found = []
            for row in lines:
                try:
                    found.append(build(row))
                except KeyError as missing:
                    sys.exit(f"{path}: no column {missing.args[0]}; there are {', '.join(lines.fieldnames or ())}")
                except (TypeError, ValueError) as error:
                    sys.exit(f"{path}:{lines.line_num}: {error}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"{path}: {getattr(error, 'strerror', None) or error}")
    if not found:
        sys.exit(f"{path} is empty")
    return tuple(found)


def _node(row: dict[str, str]) -> TraceNode:
    return TraceNode(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])


def _pods_file(variant: str) -> str:
    return f"openb_pod_list_{variant}.csv"


def _pod(row: dict[str, str]) -> Pod:
    gpus = int(row["num_gpu"])
    created, deleted = row.get("creation_time"), row.get("deletion_time")
    started = row.get("scheduled_time") or created
    return Pod(
        cpu_milli=int(row["cpu_milli"]),
        memory_mib=int(row["memory_mib"]),
        gpus=gpus,
        gpu_milli=(int(row.get("gpu_milli") or WHOLE_MILLI) if gpus == 1 else WHOLE_MILLI) if gpus else 0,
        models=frozenset(part for part in (row.get("gpu_spec") or "").split("|") if part),
        created_s=int(created) if created else None,
        lasts_s=max(1, int(deleted) - int(started)) if deleted and started else None,
    )


def capacity_milli(cluster: Sequence[TraceNode]) -> int:
    return sum(node.gpus for node in cluster) * WHOLE_MILLI


def stream(variant: str, seed: int) -> tuple[list[TraceNode], list[Pod]]:
    """Nodes in their permuted order, and the pods until 100 % of capacity has been asked for, the crossing pod included."""
    chance = random.Random(seed)
    cluster, arriving = list(nodes()), list(pods(variant))
    most = ARRIVING * capacity_milli(cluster)
    chance.shuffle(arriving)
    asked = sum(pod.gpu_milli_in_all for pod in arriving)
    while asked > most:
        asked -= arriving.pop().gpu_milli_in_all
    drawn_from = list(arriving)
    while asked < most:
        arriving.append(chance.choice(drawn_from))
        asked += arriving[-1].gpu_milli_in_all
    chance.shuffle(arriving)
    chance.shuffle(cluster)
    return cluster, _until_full(arriving, capacity_milli(cluster))


def _until_full(arriving: list[Pod], capacity: int) -> list[Pod]:
    asked = 0
    for number, pod in enumerate(arriving):
        asked += pod.gpu_milli_in_all
        if asked >= capacity:
            return arriving[: number + 1]
    return arriving


def without_times(pod: Pod) -> Pod:
    return replace(pod, created_s=None, lasts_s=None)
