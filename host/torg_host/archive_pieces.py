"""An archive as pieces, so that a changed tree sends only what changed.

The archive is a row of zstd frames, which is a zstd stream as any other (RFC 8878, 3.1). Where a frame ends depends on what is near
alone: on names of members and on offsets within one file, never on how much came before. So a tree with one changed file gives the
same frames but for one or two, and a store that has the others needs only these.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

LARGEST_PIECE_BYTES = 4 << 20  # of the tar stream
LARGE_FILE_BYTES = 1 << 20  # such a file begins a piece, so that its pieces are cut at its own offsets
SMALL_PIECE_BYTES = 128 << 10
_ONE_NAME_IN = 16  # of the small members' names, on average, one ends a piece
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame of an archive: bytes `offset` to `offset + size_bytes` of its file."""

    digest: str
    offset: int
    size_bytes: int


class PieceWriter:
    """The file that tarfile writes to: gathers at most one piece in memory, then compresses it, names it and appends it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        self._gathered = bytearray()
        self._taken = 0
        self._written = 0
        self._sha256 = hashlib.sha256()
        self.pieces: list[Piece] = []

    @property
    def size_bytes(self) -> int:
        return self._written

    @property
    def digest(self) -> str:
        return "sha256:" + self._sha256.hexdigest()

    def tell(self) -> int:
        """How much of the tar stream has come, which is what tarfile wants to know."""
        return self._taken

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        self._taken += len(rest)
        while rest:
            room = LARGEST_PIECE_BYTES - len(self._gathered)
            self._gathered += rest[:room]
            rest = rest[room:]
            if len(self._gathered) == LARGEST_PIECE_BYTES:
                self.cut()
        return len(data)

    def before_file(self, size_bytes: int) -> None:
        """A large file follows: what is small and before it must not move its cuts."""
        if size_bytes >= LARGE_FILE_BYTES:
            self.cut()

    def after_member(self, name: str, size_bytes: int) -> None:
        """Ends the piece after a large file, and after a small member whose name says so."""
        chosen = zlib.crc32(name.encode(errors="surrogateescape")) % _ONE_NAME_IN == 0
        if size_bytes >= LARGE_FILE_BYTES or (chosen and len(self._gathered) >= SMALL_PIECE_BYTES):
            self.cut()

    def cut(self) -> None:
        """Ends the piece that is being gathered. Nothing when it is empty."""
        if not self._gathered:
            return
        frame = self._compressor.compress(self._gathered)
        self._gathered.clear()
        self._sha256.update(frame)
        self._file.write(frame)
        digest = "sha256:" + hashlib.sha256(frame).hexdigest()
        self.pieces.append(Piece(digest, self._written, len(frame)))
        self._written += len(frame)
