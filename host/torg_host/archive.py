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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from torg_host.archive_pieces import Piece, PieceWriter, Sink
from torg_host.archive_read import UnpackedTree, read_tree
from torg_host.archive_rules import UnpackLimits
from torg_host.archive_write import TreeSizes, TreeWriter
from torg_protocol.errors import Conflict, TooLarge
from torg_protocol.pieces import NamedPiece, digest_of_pieces

__all__ = [
    "PackedTree",
    "Piece",
    "Sink",
    "UnpackLimits",
    "UnpackedTree",
    "digest_of_file",
    "pack",
    "pack_into",
    "sha256_file",
    "size_of_tree",
    "unpack",
]

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackedTree:
    digest: str  # of the list of its pieces, or of its bytes when it is one piece
    size_bytes: int  # of the archive
    files: int
    unpacked_bytes: int
    skipped: tuple[str, ...] = ()  # with skip_odd: what could not be packed
    pieces: tuple[Piece, ...] = ()  # the archive cut where a small change of the tree leaves most of them as they were


def sha256_file(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path: Path, pieces: Sequence[NamedPiece] = ()) -> str:
    """The name that a file has: of its bytes, or of pieces as long as these are, if its bytes are theirs."""
    if not pieces:
        return sha256_file(path)
    with path.open("rb") as file:
        found = [_piece_here(file, piece.size_bytes) for piece in pieces]
        return digest_of_pieces(found) if not file.read(1) else sha256_file(path)


def _piece_here(file: IO[bytes], size_bytes: int) -> Piece:
    offset, hasher, left = file.tell(), hashlib.sha256(), size_bytes
    while left and (data := file.read(min(left, CHUNK_BYTES))):
        hasher.update(data)
        left -= len(data)
    return Piece("sha256:" + hasher.hexdigest(), offset, size_bytes - left)


def pack(
    root: Path,
    destination_file: Path,
    *,
    ignore: bool = True,
    skip_odd: bool = False,
    limits: UnpackLimits | None = None,
) -> PackedTree:
    """`pack_into` a file. None is left behind on failure."""
    try:
        with destination_file.open("wb") as file:
            return pack_into(
                lambda _, frame, __: _write(file, frame), root, ignore=ignore, skip_odd=skip_odd, limits=limits
            )
    except BaseException:
        destination_file.unlink(missing_ok=True)
        raise


def pack_into(
    sink: Sink, root: Path, *, ignore: bool = True, skip_odd: bool = False, limits: UnpackLimits | None = None
) -> PackedTree:
    """Gives the tree below `root`, or the one file that it is, to `sink`, piece by piece. Safe on a tree that a hostile process changes meanwhile.

    `ignore` applies ignore files (see `torg_host.ignore`). Links out of the tree, sockets, devices and pipes raise
    `archive_link_outside` or `archive_member_kind`; with `skip_odd` they are left out and listed. `archive_changed` when
    a file shrank while it was read: try again.
    """
    with PieceWriter(sink) as writer:
        with tarfile.open(fileobj=cast("IO[bytes]", writer), mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.copybufsize = CHUNK_BYTES  # type: ignore[attr-defined]  # typeshed does not know it
            packer = TreeWriter(tar, writer, limits or UnpackLimits(), skip_odd=skip_odd)
            packer.add_tree(root, ignore=ignore)
        writer.finish()
    return PackedTree(
        writer.digest, writer.size_bytes, packer.files, packer.bytes, tuple(packer.skipped), tuple(writer.pieces)
    )


def size_of_tree(root: Path, *, ignore: bool = True) -> int:
    """Bytes of the files that `pack_into` would take, without reading them. Raises what `pack_into` would."""
    sizes = TreeSizes(UnpackLimits())
    sizes.add_tree(root, ignore=ignore)
    return sizes.bytes


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def unpack(
    source_file: Path,
    destination_dir: Path,
    limits: UnpackLimits | None = None,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
) -> UnpackedTree:
    """Unpacks an archive that may be hostile. `destination_dir` must be absent or empty, and not a mount point itself.

    All or nothing: members go to a sibling directory that is renamed at the end. Refusals name the member and have these
    codes: archive_absolute_path, archive_parent_path, archive_link_outside, archive_through_link, archive_member_kind,
    archive_setuid, archive_duplicate, archive_name_too_long, archive_too_deep, archive_too_many_files,
    archive_too_large, archive_broken; and archive_destination_exists, disk_full. As soon as `is_wanted` says no, which it is
    asked with each piece, nothing is left and InterruptedError is raised.
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
            unpacked = read_tree(file, staging, limits, is_wanted)
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
