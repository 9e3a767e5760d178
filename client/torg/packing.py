"""A job file on its way out: its directory as an archive, encrypted when the job is sealed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torg.spec_file import SpecFile
from torg_protocol.jobspec import JobSpec
from torg_protocol.sealing import JOB_KEY, Sealed

if TYPE_CHECKING:
    from torg_host.archive import Piece


@dataclass(frozen=True, slots=True)
class Packed:
    """`spec`: as it is submitted, but for its secrets. `secrets`: what is sealed beside those of the job file."""

    spec: JobSpec
    archive: Path | None = None
    pieces: tuple[Piece, ...] = ()
    secrets: Mapping[str, bytes] = field(default_factory=dict)


@contextlib.contextmanager
def packed(file: SpecFile) -> Iterator[Packed]:
    """The archive is there while this is open."""
    with tempfile.TemporaryDirectory(prefix="torg-") as scratch:
        if file.sealed:
            yield _sealed(file, Path(scratch))
        elif file.workspace is None:
            yield Packed(file.with_workspace(None, 0))
        else:
            from torg_host.archive import pack

            archive = Path(scratch) / "workspace.tar.zst"
            tree = pack(file.workspace, archive)
            yield Packed(file.with_workspace(tree.digest, tree.size_bytes), archive, tree.pieces)


def _sealed(file: SpecFile, scratch: Path) -> Packed:
    """Under a key of this submission: equal trees look different each time, so nothing of it is known to the store already."""
    from torg_host.age import new_key, seal_file
    from torg_host.archive import pack, sha256_file

    identity, recipient = new_key()
    secrets = {JOB_KEY: identity.encode()}
    if file.workspace is None:
        spec = file.with_workspace(None, 0)
        return Packed(spec.model_copy(update={"sealed": Sealed(recipient=recipient)}), secrets=secrets)
    plain, archive = scratch / "workspace.tar.zst", scratch / "workspace.tar.zst.age"
    pack(file.workspace, plain)
    seal_file(plain, archive, keys=[recipient])
    plain.unlink()
    spec = file.with_workspace(sha256_file(archive), archive.stat().st_size)
    return Packed(spec.model_copy(update={"sealed": Sealed(recipient=recipient)}), archive, secrets=secrets)
