"""Job files of other platforms: `torg import`, and what other commands say about what was dropped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from torg.cli.session import Session, command
from torg.importers.registry import KNOWN
from torg.importers.translation import Dropped, Translation
from torg.spec_file import SpecFile, read_spec_file
from torg_protocol.errors import Conflict, Invalid

_LONGEST_VALUE = 60


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the job file here."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@command
async def import_(session: Session, file: Path, target: Path | None, force: bool) -> None:
    """Show a job file of another platform as one of ours, with everything that was dropped and why.

    Nosana job definitions, docker-compose files, Kubernetes Jobs, Akash SDL and dstack tasks are recognised by content. Needs no network;
    exit code 1 when what was dropped changes the job's meaning.
    """
    spec_file = read_spec_file(file)
    translation = spec_file.translation
    if translation is None:
        raise Invalid(
            "this is a job file of ours already, or of no platform that is known",
            code="import_unknown_format",
            field="file",
            value=str(file),
            hint=f"known: {KNOWN}",
        )
    spec_file.check()
    text = job_file_text(translation, str(file))
    if target is not None:
        _write(target, text, force=force)
    dropped = [item.wire() for item in translation.dropped]
    answer = {
        "format": translation.format,
        "spec": translation.spec,
        "dropped": dropped,
        "file": str(target) if target else None,
    }
    session.show(answer, str(target) if target else text.rstrip())
    session.hint(dropped_text(translation))
    if translation.lost:
        sys.exit(1)


def job_file_text(translation: Translation, name: str) -> str:
    """A job.yaml whose head lists what is missing in it."""
    import yaml

    head = [f"# From {name} ({translation.title})."]
    head += [f"# {'Lost' if item.changes_meaning else 'Left out'}: {_line(item)}" for item in translation.dropped]
    body = yaml.safe_dump(translation.spec, sort_keys=False, allow_unicode=True, width=120)
    return "\n".join(head) + "\n" + body


def dropped_text(translation: Translation) -> str:
    """For people: first what changes the job's meaning, then remarks."""
    if not translation.dropped:
        return f"{translation.title}: taken over as a whole"
    lines = [
        f"{translation.title}: lost {len(translation.lost)}, left out {len(translation.dropped) - len(translation.lost)}"
    ]
    ordered = sorted(translation.dropped, key=lambda item: not item.changes_meaning)
    return "\n".join(lines + [f"  {'lost' if item.changes_meaning else 'left out'}  {_line(item)}" for item in ordered])


def told(session: Session, spec_file: SpecFile, *, allow_dropped: bool) -> SpecFile:
    """Before submitting: says what is missing, and refuses (Invalid `import_incomplete`) what may not be missing."""
    spec_file = replace(spec_file, allow_dropped=allow_dropped)
    spec_file.check()
    if spec_file.translation is not None:
        spec_file.refuse_lost()
        session.hint(dropped_text(spec_file.translation))
    return spec_file


def _line(item: Dropped) -> str:
    return f"{item.path} ({_short(item.value)}): {item.why}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _write(file: Path, text: str, *, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise Conflict(
            "there is a file of that name already",
            code="file_exists",
            field="output",
            value=str(file),
            hint="name another one, or replace it with --force",
        ) from None
