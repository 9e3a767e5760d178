"""From what people write (job.yaml, or options of `torg run`) to the spec that is submitted.

In a file, `workspace` is a directory relative to the file; on the wire it is the blob that the packed directory became. That is
the only difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A spec that still names a directory. `workspace` is None when the job needs none."""

    raw: dict[str, Any]
    workspace: Path | None

    def check(self) -> JobSpec:
        """Raises Invalid if anything but the workspace is wrong; the returned spec has no workspace yet."""
        return load_job_spec({**self.raw, "workspace": None})

    def with_workspace(self, digest: str | None, size_bytes: int) -> JobSpec:
        blob = None if digest is None else {"digest": digest, "size_bytes": size_bytes}
        return load_job_spec({**self.raw, "workspace": blob})


def read_spec_file(path: Path) -> SpecFile:
    """Reads YAML or JSON. Raises Invalid with codes spec_not_found, spec_not_yaml, spec_invalid, workspace_not_found."""
    import yaml

    try:
        text = path.read_text()
    except OSError as error:
        raise Invalid(
            f"cannot read the job file: {error.strerror}",
            code="spec_not_found",
            field="file",
            value=str(path),
            hint="give the path of a job.yaml",
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Invalid(
            "the job file is not YAML", code="spec_not_yaml", field="file", value=str(path), hint=str(error)
        ) from error
    if not isinstance(raw, dict):
        raise Invalid(
            "a job file is a mapping",
            code="spec_invalid",
            field="$",
            value=type(raw).__name__,
            hint="start with: version: 1",
        )
    return spec_from_mapping(raw, base=path.parent)


def spec_from_mapping(raw: dict[str, Any], *, base: Path) -> SpecFile:
    workspace = raw.get("workspace")
    if workspace is None:
        return SpecFile(raw, None)
    if not isinstance(workspace, str):
        raise Invalid(
            "workspace is a directory",
            code="spec_invalid",
            field="workspace",
            value=repr(workspace),
            hint="write workspace: . or a path",
        )
    directory = (base / workspace).resolve()
    if not directory.is_dir():
        raise Invalid(
            "no such directory",
            code="workspace_not_found",
            field="workspace",
            value=str(directory),
            hint="it is relative to the job file",
        )
    return SpecFile(raw, directory)
