"""`torg run --gang N`: the same command on several nodes at once, or on none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from torg_protocol.errors import Invalid

GANG = click.option(
    "--gang",
    type=int,
    metavar="N",
    help="On N nodes at once, or none: each runs the command, torch.distributed finds the others. Prices are per node, --max-cost of all.",
)
LARGEST = 64  # torg_protocol.jobspec.Gang; its models are not loaded for --help
_MOST_READ_BYTES = 1 << 20
_TOGETHER = re.compile(  # what programs that share a training say
    r"torch\.distributed|torchrun|from torch import distributed|\bDistributedDataParallel\b|TORG_RANK|TORG_WORLD_SIZE"
    r"|\bWORLD_SIZE\b|\bMASTER_ADDR\b|\b(?:accelerate|deepspeed|lightning|horovod|mpi4py|mpirun|ray)\b|jax\.distributed|\btorch_xla\b"
)


def gang_of(options: dict[str, Any]) -> dict[str, Any]:
    """What it adds to the job's spec. Raises Invalid `gang_size_invalid`, and `option_conflict` for what one node alone can have."""
    if options["gang"] is None:
        return {}
    size = _checked(options["gang"])
    for name, option, message, hint in (
        ("spot", "--spot", "several nodes at once are rented on demand", "leave out --spot, or --gang"),
        (
            "gpu_fraction",
            "--gpu-fraction",
            "a part of a GPU is for a job on one node",
            "write --gpus 1, for each of them",
        ),
    ):
        if options[name]:
            value = None if options[name] is True else str(options[name])  # a flag has none
            raise Invalid(message, code="option_conflict", field=option, value=value, hint=hint)
    named = set(options["nodes"])
    if named and len(named) < size:
        raise Invalid(
            f"a gang of {size} needs as many nodes, and --node names {len(named)}",
            code="option_conflict",
            field="--gang",
            value=size,
            hint="name more nodes, or none: the marketplace finds them",
        )
    return {"gang": {"size": size}}


def resized(raw: dict[str, Any], workload: str, size: int) -> dict[str, Any]:
    """The job of a workload that runs on several nodes, on so many: what it may cost grows with them. Raises Invalid `gang_size_invalid`, `option_conflict`."""
    if "gang" not in raw:
        raise Invalid(
            f"{workload} trains on one node: every one of them would do the same",
            code="option_conflict",
            field="--gang",
            value=size,
            hint="torg run --workload distributed --gang N is one that shares its work",
        )
    limits = dict(raw["limits"])
    if "max_cost" in limits:
        limits["max_cost"] = str(Decimal(limits["max_cost"]) * _checked(size) / raw["gang"]["size"])
    return {**raw, "limits": limits, "gang": {**raw["gang"], "size": _checked(size)}}


def alone_together(argv: Sequence[str], workspace: Path | None) -> str | None:
    """What to say when neither the command nor its scripts speak of other nodes: then each would do all of the work. None where one of them
    does, or where nobody can tell, as with a program of the image."""
    scripts = (
        [] if workspace is None else [path for name in _scripts_named(argv) if (path := workspace / name).is_file()]
    )
    said = [*argv]
    for script in scripts:
        with contextlib.suppress(OSError), script.open(encoding="utf-8", errors="replace") as file:
            said.append(file.read(_MOST_READ_BYTES))
    if not (scripts or "-c" in argv) or any(_TOGETHER.search(text) for text in said):
        return None
    name = scripts[0].name if scripts else "the command"
    return (
        f"{name} mentions neither torch.distributed nor TORG_RANK: unless what it imports does, every node of the gang does the same work, and is paid"
        " for it. How to share it: docs/how-to/train-on-several-nodes.md"
    )


def _scripts_named(argv: Sequence[str]) -> list[str]:
    """Relative paths of scripts among the words, and a module's as the files that it may be in."""
    modules = [module.replace(".", "/") for flag, module in pairwise(argv) if flag == "-m"]
    scripts = [word for word in argv if Path(word).suffix in {".py", ".sh"} and not Path(word).is_absolute()]
    return [*scripts, *(f"{module}.py" for module in modules), *(f"{module}/__main__.py" for module in modules)]


def _checked(size: int) -> int:
    if not 2 <= size <= LARGEST:
        raise Invalid(
            f"a gang has 2 to {LARGEST} nodes",
            code="gang_size_invalid",
            field="--gang",
            value=size,
            hint="leave it out for one node" if size < 2 else f"ask for {LARGEST} with more GPUs each (--gpus)",
        )
    return size
