"""Where a job's outputs go. Their names come from a stranger's machine: they never lead out of the folder that the user named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torg.errors import ReceiptInvalid
from torg_host.archive import sha256_file
from torg_protocol.errors import Conflict
from torg_protocol.output_names import output_name_problem
from torg_protocol.usage import OutputFile


@dataclass(frozen=True, slots=True)
class Download:
    output: OutputFile
    target: Path
    is_there: bool  # with these very bytes


def plan_downloads(outputs: Sequence[OutputFile], destination: Path, *, overwrite: bool) -> list[Download]:
    """Raises ReceiptInvalid `output_path_unsafe`, or Conflict `output_exists`, before anything is written."""
    taken: dict[PurePosixPath, str] = {}
    for output in outputs:
        path = _checked(output.path)
        if path in taken or any(parent in taken for parent in path.parents) or _is_parent(path, taken):
            raise _unsafe(output.path, "two outputs claim one place")
        taken[path] = output.path
    return [_plan(output, destination, overwrite=overwrite) for output in outputs]


def _plan(output: OutputFile, destination: Path, *, overwrite: bool) -> Download:
    target = destination / output.path
    if not target.parent.resolve().is_relative_to(destination.resolve()):
        raise _unsafe(output.path, "a link in the folder leads out of it")
    in_the_way = next((place for place in _between(destination, target) if place.exists() and not place.is_dir()), None)
    if in_the_way is not None:
        raise Conflict(
            "there is a file where a folder is needed",
            code="output_exists",
            field="path",
            value=str(in_the_way),
            hint="pull into another folder with -o",
        )
    if not (target.exists() or target.is_symlink()):
        return Download(output, target, is_there=False)
    same_size = target.is_file() and not target.is_symlink() and target.stat().st_size == output.size_bytes
    if same_size and sha256_file(target) == output.digest:
        return Download(output, target, is_there=True)
    if overwrite and not target.is_dir():
        return Download(output, target, is_there=False)
    raise Conflict(
        "there is a folder in the way" if target.is_dir() else "there is another file of that name",
        code="output_exists",
        field="path",
        value=str(target),
        hint="pull into another folder with -o" + ("" if target.is_dir() else ", or replace it with --overwrite"),
    )


def _between(destination: Path, target: Path) -> list[Path]:
    """The folders that the target needs, from `destination` on."""
    return [destination, *(parent for parent in reversed(target.parents) if parent.is_relative_to(destination))]


def _checked(path: str) -> PurePosixPath:
    if (why := output_name_problem(path)) is not None:
        raise _unsafe(path, why)
    return PurePosixPath(path)


def _is_parent(path: PurePosixPath, taken: dict[PurePosixPath, str]) -> bool:
    return any(path in other.parents for other in taken)


def _unsafe(path: str, why: str) -> ReceiptInvalid:
    return ReceiptInvalid(
        f"an output's name is not safe to write: {why}",
        code="output_path_unsafe",
        field="path",
        value=path,
        hint="nothing was written; its bytes can be fetched by digest: torg show --json",
    )
