"""A job file on its way out: its directory by its name, or as an encrypted archive when the job is sealed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torg.spec_file import SpecFile
from torg_protocol.jobspec import JobSpec
from torg_protocol.sealing import JOB_KEY, Sealed

_SMALL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """`spec`: as it is submitted, but for its secrets; of a large tree without the workspace, whose name only the upload tells. `archive`: what
    is to be stored, when it is sealed. `secrets`: what is sealed beside those of the job file."""

    spec: JobSpec
    archive: Path | None = None
    secrets: Mapping[str, bytes] = field(default_factory=dict)


@contextlib.contextmanager
def ready(file: SpecFile, *, name_it: bool) -> Iterator[Packed]:
    """What can be quoted. Archives are there while this is open. `name_it`: however large the workspace is."""
    if file.sealed:
        with tempfile.TemporaryDirectory(prefix="torg-") as scratch:
            yield _sealed(file, Path(scratch))
        return
    yield Packed(_named(file) if name_it or _is_cheap_to_name(file) else file.check())


def _is_cheap_to_name(file: SpecFile) -> bool:
    """A small tree is packed twice, which saves its job a second quote; and so is what only a marketplace that sees its name can quote."""
    if file.workspace is None or file.check().verify.policy not in {"none", "quorum"}:
        return True
    from torg_host.archive import size_of_tree

    return size_of_tree(file.workspace) <= _SMALL_BYTES


def _named(file: SpecFile) -> JobSpec:
    if file.workspace is None:
        return file.with_workspace(None, 0)
    from torg_host.archive import pack_into

    tree = pack_into(lambda *_: None, file.workspace)
    return file.with_workspace(tree.digest, tree.size_bytes)


def _sealed(file: SpecFile, scratch: Path) -> Packed:
    """Under a key of this submission: equal trees look different each time, so nothing of it is known to the store already."""
    from torg_host.age import new_key, seal_file
    from torg_host.archive import pack, sha256_file

    identity, recipient = new_key()
    secrets = {JOB_KEY: identity.encode()}
    by_key = {"sealed": Sealed(recipient=recipient)}
    if file.workspace is None:
        return Packed(file.with_workspace(None, 0).model_copy(update=by_key), secrets=secrets)
    plain, archive = scratch / "workspace.tar.zst", scratch / "workspace.tar.zst.age"
    pack(file.workspace, plain)
    seal_file(plain, archive, keys=[recipient])
    plain.unlink()
    spec = file.with_workspace(sha256_file(archive), archive.stat().st_size)
    return Packed(spec.model_copy(update=by_key), archive, secrets)
