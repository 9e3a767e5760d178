"""Reads a tar stream that may be hostile into a directory of its own. See `archive.unpack`."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import zstandard

from torg_host.archive_rules import UnpackLimits, check_link, check_name, check_place, note_place, too_large, too_many
from torg_protocol.errors import Invalid

CHUNK_BYTES = 1 << 20
MAX_WINDOW_BYTES = 1 << 27  # what `zstd --ultra` may ask for; a header that wants more is refused, not allocated
MAX_HEADER_BYTES = 1 << 18  # tar's own headers between two members (long names); tarfile would read gigabytes of them


@dataclass(frozen=True, slots=True)
class UnpackedTree:
    files: int
    unpacked_bytes: int


class _ForwardReader:
    """What tarfile needs of a file, over a stream: reads, and seeks forward. `header_budget` bounds what tarfile may read
    between two members; without it a single hostile header grows until memory ends."""

    def __init__(self, stream: IO[bytes], is_wanted: Callable[[], bool]) -> None:
        self._stream, self._is_wanted = stream, is_wanted
        self._position = 0
        self.header_budget: int | None = MAX_HEADER_BYTES

    def _piece(self, size: int) -> bytes:
        if not self._is_wanted():
            raise InterruptedError("unpacking was stopped")
        return self._stream.read(size)

    def read(self, size: int) -> bytes:
        if self.header_budget is not None:
            self.header_budget -= size
            if self.header_budget < 0:
                raise tarfile.ReadError("headers too large")
        pieces = []
        while size > 0 and (piece := self._piece(min(size, CHUNK_BYTES))):
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position:
            piece = self._piece(min(position - self._position, CHUNK_BYTES))
            if not piece:
                raise tarfile.ReadError("unexpected end of data")
            self._position += len(piece)


def read_tree(file: BinaryIO, staging: Path, limits: UnpackLimits, is_wanted: Callable[[], bool]) -> UnpackedTree:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(file, read_across_frames=True, closefd=False) as stream:
            reader = _ForwardReader(stream, is_wanted)
            with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]  # a reader is enough
                return _unpack_members(tar, reader, staging, limits)
    except (tarfile.TarError, zstandard.ZstdError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise Invalid(f"the archive cannot be read: {error}", code="archive_broken") from error


def _unpack_members(tar: tarfile.TarFile, reader: _ForwardReader, staging: Path, limits: UnpackLimits) -> UnpackedTree:
    seen: dict[str, bytes] = {}
    files = total = 0
    for info in _members(tar, reader):
        name = check_name(info.name, limits.max_name_bytes, limits.max_depth)
        if name == "":
            continue  # the tree's own root, which some packers write
        check_place(name, info.type, seen)
        if len(seen) >= limits.max_files:
            raise too_many(limits.max_files, name)
        total += info.size
        if total > limits.max_bytes:
            raise too_large(limits.max_bytes, name)
        if info.mode & 0o6000:
            raise Invalid("set-user-id files are refused", code="archive_setuid", field="member", value=name)
        note_place(name, info.type, seen)
        files += _unpack_member(tar, info, name, staging)
    return UnpackedTree(files, total)


def _members(tar: tarfile.TarFile, reader: _ForwardReader) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        reader.header_budget = None
        yield info
        reader.header_budget = MAX_HEADER_BYTES
        tar.members = []  # type: ignore[attr-defined]  # not in the stubs; tarfile remembers every member otherwise


def _unpack_member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, staging: Path) -> int:
    target = staging / name
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if info.isdir():
        target.mkdir(mode=0o755, exist_ok=True)
        return 0
    if info.issym():
        check_link(name, info.linkname)
        target.symlink_to(info.linkname)
        return 0
    if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or info.issparse():
        raise Invalid(
            "only files, directories and symbolic links are unpacked",
            code="archive_member_kind",
            field="member",
            value=name,
        )
    content = tar.extractfile(info)
    if content is None:
        raise Invalid("a file without content", code="archive_broken", field="member", value=name)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
    target.chmod(0o755 if info.mode & 0o111 else 0o644)
    return 1
