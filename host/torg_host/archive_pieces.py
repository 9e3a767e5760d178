"""An archive as pieces, so that a changed tree sends only what changed.

The archive is a row of zstd frames, which is a zstd stream as any other (RFC 8878, 3.1). Where a frame ends depends on what is near
alone: on names of members and on offsets within one file, never on how much came before. So a tree with one changed file gives the
same frames but for one or two, and a store that has the others needs only these.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

import zstandard

LARGEST_PIECE_BYTES = 4 << 20  # of the tar stream
LARGE_FILE_BYTES = 1 << 20  # such a file begins a piece, so that its pieces are cut at its own offsets
SMALL_PIECE_BYTES = 128 << 10
_ONE_NAME_IN = 16  # of the small members' names, on average, one ends a piece
ZSTD_LEVEL = 3
_LEVEL_OF_NOISE = -1000  # of what does not compress anyway: little more than a copy
_SAMPLE_BYTES = 64 << 10
_WORKERS = 2  # compressing and hashing pieces; the thread that reads also hashes the whole and writes
_AHEAD = _WORKERS + 1  # pieces in memory beside the one that is gathered


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame of an archive: bytes `offset` to `offset + size_bytes` of its file."""

    digest: str
    offset: int
    size_bytes: int


class PieceWriter:
    """The file that tarfile writes to: gathers a piece in memory, has it compressed and named by another thread, and appends it. A context
    manager; `digest`, `size_bytes` and `pieces` are complete after `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="pack")
        self._coming: deque[Future[tuple[bytes, str]]] = deque()
        self._gathered = bytearray()
        self._taken = 0
        self._written = 0
        self._sha256 = hashlib.sha256()
        self.pieces: list[Piece] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown(cancel_futures=True)

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
        self._coming.append(self._workers.submit(_framed, self._gathered))
        self._gathered = bytearray()
        while len(self._coming) > _AHEAD:
            self._append(*self._coming.popleft().result())

    def finish(self) -> None:
        """Ends the last piece, and waits until all are written."""
        self.cut()
        while self._coming:
            self._append(*self._coming.popleft().result())

    def _append(self, frame: bytes, digest: str) -> None:
        self._sha256.update(frame)
        self._file.write(frame)
        self.pieces.append(Piece(digest, self._written, len(frame)))
        self._written += len(frame)


_compressors = threading.local()  # one compressor serves one thread at a time


def _framed(data: bytearray) -> tuple[bytes, str]:
    """A zstd frame and its digest; the same for the same data."""
    frame = _compressor(_level_for(data)).compress(data)
    return frame, "sha256:" + hashlib.sha256(frame).hexdigest()


def _level_for(data: bytearray) -> int:
    """Weights, images and archives do not shrink; trying costs as much as hashing them. A sample out of the middle tells."""
    start = max(0, (len(data) - _SAMPLE_BYTES) // 2)
    sample = bytes(memoryview(data)[start : start + _SAMPLE_BYTES])
    is_noise = len(sample) == _SAMPLE_BYTES and len(_compressor(ZSTD_LEVEL).compress(sample)) >= len(sample)
    return _LEVEL_OF_NOISE if is_noise else ZSTD_LEVEL


def _compressor(level: int) -> zstandard.ZstdCompressor:
    known: dict[int, zstandard.ZstdCompressor] = _compressors.__dict__.setdefault("by_level", {})
    return known.setdefault(level, zstandard.ZstdCompressor(level=level, write_checksum=True))
