"""Base of the job spec's parts: unknown keys are refused, values are frozen."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def check_env(env: dict[str, str]) -> dict[str, str]:
    """Raises ValueError for what is no variable name, or is the node's to set."""
    for name in env:
        if _ENV_NAME.fullmatch(name) is None:
            raise ValueError(f'"{name}" is not a variable name')
        if name.startswith("TORG_"):
            raise ValueError(f'"{name}": names that start with TORG_ are set by the node')
    return env


def check_container_path(path: str) -> str:
    """Raises ValueError for what is no plain absolute path. A slash at the end is left out."""
    parts = path.rstrip("/").split("/")
    if not path.startswith("/") or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts[1:]) or "\0" in path:
        raise ValueError(f'"{path}" is not an absolute path without ".."')
    return path.rstrip("/")
