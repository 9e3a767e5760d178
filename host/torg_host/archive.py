"""Directory trees as single files: reproducible tar + zstd, and unpacking that trusts nothing in the archive.

`pack` gives equal bytes for equal trees (same zstandard version): sorted names, no times, no owners, modes 644 or 755.
Both directions stream, in constant memory but for one name per member.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from torg_host.archive_pieces import Piece, PieceWriter
from torg_host.archive_read import UnpackedTree, read_tree
from torg_host.archive_rules import UnpackLimits
from torg_host.archive_write import TreeWriter
from torg_protocol.errors import Conflict, TooLarge

__all__ = ["PackedTree", "Piece", "UnpackLimits", "UnpackedTree", "pack", "sha256_file", "unpack"]

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackedTree:
    digest: str  # "sha256:..." of the file that was written
    size_bytes: int  # of that file
    files: int
    unpacked_bytes: int
    skipped: tuple[str, ...] = ()  # with skip_odd: what could not be packed
    pieces: tuple[Piece, ...] = ()  # the file cut where a small change of the tree leaves most of them as they were


def sha256_file(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def pack(
    root: Path,
    destination_file: Path,
    *,
    ignore: bool = True,
    skip_odd: bool = False,
    limits: UnpackLimits | None = None,
) -> PackedTree:
    """Writes the tree below `root` to `destination_file`. Safe on a tree that a hostile process changes meanwhile.

    `ignore` applies ignore files (see `torg_host.ignore`). Links out of the tree, sockets, devices and pipes raise
    `archive_link_outside` or `archive_member_kind`; with `skip_odd` they are left out and listed. `archive_changed` when
    a file shrank while it was read: try again. No file is left behind on failure.
    """
    limits = limits or UnpackLimits()
    try:
        with destination_file.open("wb") as file, PieceWriter(file) as writer:
            with tarfile.open(fileobj=cast("IO[bytes]", writer), mode="w", format=tarfile.PAX_FORMAT) as tar:
                tar.copybufsize = CHUNK_BYTES  # type: ignore[attr-defined]  # typeshed does not know it
                packer = TreeWriter(tar, writer, limits, skip_odd=skip_odd)
                packer.add_tree(root, ignore=ignore)
            writer.finish()
    except BaseException:
        destination_file.unlink(missing_ok=True)
        raise
    return PackedTree(
        writer.digest, writer.size_bytes, packer.files, packer.bytes, tuple(packer.skipped), tuple(writer.pieces)
    )


def unpack(source_file: Path, destination_dir: Path, limits: UnpackLimits | None = None) -> UnpackedTree:
    """Unpacks an archive that may be hostile. `destination_dir` must be absent or empty, and not a mount point itself.

    All or nothing: members go to a sibling directory that is renamed at the end. Refusals name the member and have these
    codes: archive_absolute_path, archive_parent_path, archive_link_outside, archive_through_link, archive_member_kind,
    archive_setuid, archive_duplicate, archive_name_too_long, archive_too_deep, archive_too_many_files,
    archive_too_large, archive_broken; and archive_destination_exists, disk_full.
    """
    limits = limits or UnpackLimits()
    if destination_dir.exists() and (not destination_dir.is_dir() or any(destination_dir.iterdir())):
        raise Conflict(
            "unpacking needs an absent or empty directory",
            code="archive_destination_exists",
            field="destination_dir",
            value=str(destination_dir),
        )
    parent = destination_dir.absolute().parent
    staging = Path(tempfile.mkdtemp(prefix=f".{destination_dir.name}.unpacking-", dir=parent))
    try:
        with source_file.open("rb") as file:
            unpacked = read_tree(file, staging, limits)
        staging.chmod(0o755)
        staging.rename(destination_dir)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise TooLarge("no space left to unpack", code="disk_full", field="destination_dir") from error
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return unpacked
