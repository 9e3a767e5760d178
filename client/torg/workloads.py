"""The catalogue of workloads that came with this installation: each a folder with job.yaml and target.yaml."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from torg_protocol.errors import NotFound


def workloads() -> dict[str, str]:
    """Name -> what it is, in one line."""
    import yaml

    files = sorted(_root().glob("*/target.yaml"))
    return {file.parent.name: str(yaml.safe_load(file.read_text())["what"]) for file in files}


def workload_file(name: str) -> Path:
    """Its job.yaml. Raises NotFound (workload_unknown) naming the nearest."""
    known = sorted(file.parent.name for file in _root().glob("*/job.yaml"))
    if name in known:
        return _root() / name / "job.yaml"
    close = difflib.get_close_matches(name, known, n=1)
    raise NotFound(
        "no such workload",
        code="workload_unknown",
        field="workload",
        value=name,
        hint=f'did you mean "{close[0]}"?' if close else "there are: " + ", ".join(known),
    )


def names_a_workload(path: Path) -> bool:
    """A bare word that is no file, but a workload's name."""
    bare = re.fullmatch(r"[a-z0-9-]+", str(path)) is not None
    return bare and not path.exists() and (_root() / path.name / "job.yaml").is_file()


def _root() -> Path:
    """In a checkout the folder beside the packages (an editable install holds a copy, which grows old), else the package data."""
    checkout = Path(__file__).resolve().parents[2]
    spec = importlib.util.find_spec("torg_workloads")
    if (checkout / "pyproject.toml").is_file() or spec is None or not spec.submodule_search_locations:
        return checkout / "workloads"
    return Path(next(iter(spec.submodule_search_locations)))
