"""From what people write (job.yaml, or options of `torg run`) to the spec that is submitted.

In a file, `workspace` is a directory relative to the file; on the wire it is the blob that the packed directory became. `secrets`
say where each secret is; on the wire they are sealed. `sealed: true` becomes the key of this submission. Those are the only differences. Job files of other platforms are recognised by their content and translated (`torg.importers`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torg.importers.translation import Translation
from torg.secret_sources import SecretSource, sources_of
from torg.spec_source import Parsed, Source, parse_documents, several
from torg.workloads import names_a_workload, workload_file
from torg_host.archive import sha256_file
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.secrets import check_secret_names
from torg_protocol.tasks import BLOB_IMAGE

_IMAGE_FILE = "file:"
_SOME_RECIPIENT = "age1" + "q" * 58  # stands for the key that each submission makes


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A spec that still names a directory. `workspace` is None when the job needs none.

    `translation`: of a file in another platform's format, what was made of it. One that lost some of the job's meaning is not
    submitted unless `allow_dropped`.
    """

    raw: dict[str, Any]
    workspace: Path | None
    source: Source | None = field(default=None, compare=False)
    translation: Translation | None = field(default=None, compare=False)
    allow_dropped: bool = False
    secrets: tuple[SecretSource, ...] = ()  # where they are; read when the job is submitted
    image_file: Path | None = None  # of `image: file:PATH`
    sealed: bool = False

    def check(self) -> JobSpec:
        """Raises Invalid if anything but the workspace is wrong; the returned spec has no workspace yet."""
        return self._load(None)

    def with_workspace(self, digest: str | None, size_bytes: int) -> JobSpec:
        """What is submitted. Raises Invalid `import_incomplete` for a translation that lost meaning, unless that is allowed."""
        self.refuse_lost()
        return self._load(None if digest is None else {"digest": digest, "size_bytes": size_bytes})

    def refuse_lost(self) -> None:
        lost = self.translation.lost if self.translation and not self.allow_dropped else ()
        if self.translation is None or not lost:
            return
        listed = "".join(f"\n  - {item.path}: {item.why}" for item in lost)
        raise Invalid(
            f"this {self.translation.title} asks for what a job here would not have:{listed}",
            code="import_incomplete",
            field=lost[0].path,
            hint="--allow-dropped submits it all the same; or change its translation: torg import FILE -o job.yaml",
            dropped=[item.wire() for item in self.translation.dropped],
        )

    def image_archive(self) -> tuple[Digest, Path] | None:
        """The archive that is the job's image, when the job file names one. Raises Invalid `image_not_found`, `image_archive_compressed`,
        `image_archive_invalid`."""
        if self.image_file is None:
            return None
        try:
            status = self.image_file.stat()
            return _digest_of_image(self.image_file, status.st_mtime_ns, status.st_size), self.image_file
        except OSError as error:
            raise Invalid(
                f"cannot read the image archive: {error.strerror}",
                code="image_not_found",
                field="image",
                value=str(self.image_file),
                hint="it is relative to the job file; docker save -o image.tar NAME writes one",
            ) from error

    def _load(self, blob: dict[str, Any] | None) -> JobSpec:
        archive = self.image_archive()
        image = {} if archive is None else {"image": f"{BLOB_IMAGE}{archive[0]}"}
        sealed = {"sealed": {"recipient": _SOME_RECIPIENT}} if self.sealed else {}
        try:
            spec = load_job_spec({**self.raw, "workspace": blob, **image, **sealed})
            names = [source.name for source in self.secrets]
            check_secret_names(spec, [*names, *(spec.secrets.names if spec.secrets else ())])
        except Invalid as error:
            raise self.explain(error) from error
        return spec

    def explain(self, error: Invalid) -> Invalid:
        """The same refusal in the words of the file, with the line of each problem."""
        if self.source is None:
            return error
        return self.source.explain(error if self.translation is None else _in_their_words(error, self.translation))


def read_spec_file(path: Path) -> SpecFile:
    """Reads YAML or JSON; "-" is standard input; the bare name of a catalogue workload stands for its job.yaml.

    Raises Invalid with codes spec_not_found, spec_not_text, spec_not_yaml, spec_not_json, spec_several_documents, spec_key_twice, spec_too_large, spec_invalid, workspace_not_found; `data["problems"]` has lines and columns."""
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
    documents = parse_documents(text, name)
    return _of_documents(documents, name, path.parent)


def _of_documents(documents: Sequence[Parsed], name: str, base: Path) -> SpecFile:
    """One is the job; what may stand beside it, the importers know. Raises Invalid `spec_several_documents`."""
    jobs = [0]
    if len(documents) > 1:
        from torg.importers.registry import jobs_among

        jobs = jobs_among([document.raw for document in documents])
    if len(jobs) > 1:
        raise several(name, documents[jobs[1]].line)
    chosen = documents[jobs[0]]
    others = [document for document in documents if document is not chosen]
    return spec_from_mapping(chosen.raw, base=base, source=chosen.source, foreign_allowed=True, beside=others)


def spec_from_mapping(
    raw: dict[str, Any],
    *,
    base: Path,
    source: Source | None = None,
    foreign_allowed: bool = False,
    beside: Sequence[Parsed] = (),
) -> SpecFile:
    """`base`: what a relative workspace is relative to. `foreign_allowed`: it may be in another platform's format; `beside`: with these documents."""
    if foreign_allowed and (translation := _translated(raw, source, base, beside)) is not None:
        return replace(spec_from_mapping(translation.spec, base=base, source=source), translation=translation)
    if raw.get("secrets") is not None and not _is_sealed(raw["secrets"]):
        plain = {name: value for name, value in raw.items() if name != "secrets"}
        secrets = _secrets(raw["secrets"], base, source)
        return replace(spec_from_mapping(plain, base=base, source=source), secrets=secrets)
    if isinstance(sealed := raw.get("sealed"), bool):
        plain = {name: value for name, value in raw.items() if name != "sealed"}
        return replace(spec_from_mapping(plain, base=base, source=source), sealed=sealed)
    if isinstance(image := raw.get("image"), str) and image.startswith(_IMAGE_FILE):
        plain = {name: value for name, value in raw.items() if name != "image"}
        path = (base / Path(image.removeprefix(_IMAGE_FILE)).expanduser()).resolve()
        return replace(spec_from_mapping(plain, base=base, source=source), image_file=path)
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


@functools.lru_cache(maxsize=8)
def _digest_of_image(path: Path, _changed_ns: int, _size_bytes: int) -> Digest:
    from torg_host.oci_archive import check_image_archive

    check_image_archive(path)
    return Digest(sha256_file(path))


def _is_sealed(secrets: object) -> bool:
    """As in a spec that was submitted before."""
    return isinstance(secrets, dict) and isinstance(secrets.get("sealed"), str)


def _secrets(written: object, base: Path, source: Source | None) -> tuple[SecretSource, ...]:
    try:
        return sources_of(written, base)
    except Invalid as error:
        raise error if source is None else source.explain(error) from None


def _translated(raw: dict[str, Any], source: Source | None, base: Path, beside: Sequence[Parsed]) -> Translation | None:
    from torg.importers.kubernetes_objects import Other
    from torg.importers.registry import translation_of
    from torg.importers.surroundings import around

    try:
        return translation_of(raw, around(base), [Other(document.raw, document.line) for document in beside])
    except Invalid as error:
        raise error if source is None else source.explain(error) from error


def _in_their_words(error: Invalid, translation: Translation) -> Invalid:
    """Problems of the translated spec, under the names that their author wrote."""
    problems: list[dict[str, Any]] = []
    for item in error.data.get("problems", []):
        told = {**item, "field": translation.origin(item["field"])}
        if told not in problems:  # what several tasks have from one place
            problems.append(told)
    return Invalid(error.message, code=error.code, field=error.field, hint=error.hint, problems=problems)


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
