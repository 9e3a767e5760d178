"""From what people write (job.yaml, or options of `torg run`) to the spec that is submitted.

In a file, `workspace` is a directory relative to the file; on the wire it is the blob that the packed directory became. That is
the only difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torg.spec_source import Source, parse_source
from torg.workloads import names_a_workload, workload_file
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A spec that still names a directory. `workspace` is None when the job needs none."""

    raw: dict[str, Any]
    workspace: Path | None
    source: Source | None = field(default=None, compare=False)

    def check(self) -> JobSpec:
        """Raises Invalid if anything but the workspace is wrong; the returned spec has no workspace yet."""
        return self._load(None)

    def with_workspace(self, digest: str | None, size_bytes: int) -> JobSpec:
        return self._load(None if digest is None else {"digest": digest, "size_bytes": size_bytes})

    def _load(self, blob: dict[str, Any] | None) -> JobSpec:
        return _explained(self.source, lambda: load_job_spec({**self.raw, "workspace": blob}))


def read_spec_file(path: Path) -> SpecFile:
    """Reads YAML or JSON; "-" is standard input; the bare name of a catalogue workload stands for its job.yaml.

    Raises Invalid with codes spec_not_found, spec_not_text, spec_not_yaml, spec_not_json, spec_key_twice, spec_too_large, spec_invalid, workspace_not_found; `data["problems"]` has lines and columns."""
    if names_a_workload(path):
        path = workload_file(str(path))
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(
            f"cannot read the job file: {error.strerror}",
            code="spec_not_found",
            field="file",
            value=name,
            hint="give the path of a job.yaml; `torg init` writes one, `torg examples` lists workloads",
        ) from error
    except UnicodeDecodeError as error:
        raise Invalid(
            "the job file is not text",
            code="spec_not_text",
            field="file",
            value=name,
            hint=f"it must be UTF-8; byte {error.start} is not",
        ) from error
    raw, source = parse_source(text, name)
    return spec_from_mapping(raw, base=path.parent, source=source)


def spec_from_mapping(raw: dict[str, Any], *, base: Path, source: Source | None = None) -> SpecFile:
    """`base`: what a relative workspace is relative to."""
    workspace = raw.get("workspace")
    if workspace is None:
        return SpecFile(raw, None, source)
    if not isinstance(workspace, str):
        problem = _workspace_problem("a directory is expected", None, "write workspace: . or a path")
        raise _located(source, problem, "spec_invalid")
    directory = (base / workspace).resolve()
    if not directory.is_dir():
        problem = _workspace_problem("no such directory", str(directory), "it is relative to the job file")
        raise _located(source, problem, "workspace_not_found")
    return SpecFile(raw, directory, source)


def _workspace_problem(message: str, value: str | None, hint: str) -> dict[str, Any]:
    return {"field": "workspace", "message": message, "value": value, "hint": hint}


def _located(source: Source | None, problem: dict[str, Any], code: str) -> Invalid:
    error = Invalid(
        f"workspace: {problem['message']}",
        code=code,
        field="workspace",
        value=problem["value"],
        hint=problem["hint"],
        problems=[problem],
    )
    return error if source is None else source.explain(error)


def _explained(source: Source | None, load: Callable[[], JobSpec]) -> JobSpec:
    try:
        return load()
    except Invalid as error:
        if source is None:
            raise
        raise source.explain(error) from error
