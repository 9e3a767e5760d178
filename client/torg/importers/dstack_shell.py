"""What dstack puts around a task's commands: its default image with its Python, its variables, and those of the shell that submits.

The commands run in one shell, joined by `&&`. What only the run knows is exported in that shell before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torg.importers.reading import Part

_IMAGE, _UBUNTU = "dstackai/base:0.16", "ubuntu24.04"  # the default of dstack 0.22
_PYTHON = "3.12"
_OURS = {  # in a gang
    "DSTACK_NODE_RANK": "$TORG_RANK",
    "DSTACK_NODES_NUM": "$TORG_WORLD_SIZE",
    "DSTACK_MASTER_NODE_IP": "$MASTER_ADDR",
}
_ALONE = {"DSTACK_NODE_RANK": "0", "DSTACK_NODES_NUM": "1", "DSTACK_MASTER_NODE_IP": "127.0.0.1"}
_THEIRS = re.compile(r"DSTACK_[A-Z_]+")


def default_image(*, nvcc: bool) -> str:
    return f"{_IMAGE}-{'devel' if nvcc else 'base'}-{_UBUNTU}"


def python_of(value: object) -> str:
    """YAML reads an unquoted 3.10 as 3.1."""
    return "3.10" if value == 3.1 else str(value or _PYTHON)


def with_python(version: str) -> str:
    """As their image is entered: in an environment of its own, with pip."""
    return f"uv venv -q --seed -p {version} /tmp/dstack-venv && . /tmp/dstack-venv/bin/activate"  # of the container


def joined(commands: Sequence[str]) -> str:
    stripped = (command.strip() for command in commands)
    return " && ".join(f"{{ {command} }}" if command.endswith("&") else command for command in stripped)


def exports(commands: Sequence[str], *, nodes: int, gpus: int, name: str, top: Part) -> list[str]:
    """For those of their variables that the commands name."""
    known: Mapping[str, str] = {
        **(_OURS if nodes > 1 else _ALONE),
        "DSTACK_GPUS_PER_NODE": str(gpus),
        "DSTACK_GPUS_NUM": str(gpus * nodes),
        "DSTACK_RUN_NAME": name,
    }
    named = dict.fromkeys(_THEIRS.findall("\n".join(commands)))
    for other in named:
        if other not in known and not any(f"{other}=" in command for command in commands):
            top.reading.drops.lose("commands", other, "a variable of theirs that nothing here gives")
    return [f'export {variable}="{known[variable]}"' for variable in named if variable in known]


def secrets_of(top: Part) -> dict[str, str]:
    """Names in `env` without a value, with their places: there they are read from the shell that submits."""
    listed = top.value.get("env")
    if not isinstance(listed, list):
        return (
            {name: f"env.{name}" for name, value in listed.items() if value is None} if isinstance(listed, dict) else {}
        )
    return {str(item): f"env.{number}" for number, item in enumerate(listed) if "=" not in str(item)}


def exported_secrets(names: Mapping[str, str]) -> list[str]:
    return [f'export {name}="$(cat "$TORG_SECRETS_DIR/{name}")"' for name in names]
