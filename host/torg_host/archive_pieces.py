"""An archive as pieces, so that a changed tree sends only what changed.

The archive is a row of zstd frames, which is a zstd stream as any other (RFC 8878, 3.1). Where a frame ends depends on what is near
alone: on names of members and on offsets within one file, hardly on how much came before. So a tree with one changed file gives the
same frames but for one or two, and a store that has the others needs only these.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zstandard

from torg_protocol.api import MAX_BLOB_PIECES
from torg_protocol.errors import TooLarge
from torg_protocol.pieces import digest_of_pieces

LARGEST_PIECE_BYTES = 4 << 20  # of the tar stream
LARGE_FILE_BYTES = 1 << 20  # such a file begins a piece, so that its pieces are cut at its own offsets
SMALL_PIECE_BYTES = 128 << 10
_DOUBLED_EACH = (
    4096  # after so many pieces small ones become larger: a hundred gigabytes of small files still have a list
)
_ONE_NAME_IN = 16  # of the small members' names, on average, one ends a piece
ZSTD_LEVEL = 3
_SAMPLE_BYTES = 64 << 10
_WORKERS = 2  # compressing and hashing pieces, beside the thread that reads
_AHEAD = _WORKERS + 1  # pieces in memory beside the one that is gathered
_FRAME_HEAD = bytes.fromhex("28b52ffda0")  # magic number; one segment, whose length follows in four bytes; no checksum
_BLOCK_BYTES = 128 << 10  # the largest that a frame may have
_LAST_BLOCK = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame of an archive: bytes `offset` to `offset + size_bytes` of its file."""

    digest: str
    offset: int
    size_bytes: int


Sink = Callable[[Piece, bytes, int], None]
"""Takes the pieces in their order: its name and place, its bytes, and how many bytes of the tar stream it holds. May block."""


class PieceWriter:
    """The file that tarfile writes to: gathers a piece in memory, has it compressed and named by another thread, and gives it away. A context
    manager; `digest`, `size_bytes` and `pieces` are complete after `finish`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="pack")
        self._coming: deque[tuple[Future[tuple[bytes, str]], int]] = deque()
        self._gathered = bytearray()
        self._taken = 0
        self._given = 0
        self.pieces: list[Piece] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown(cancel_futures=True)

    @property
    def size_bytes(self) -> int:
        return self._given

    @property
    def digest(self) -> str:
        """Of the only piece, or of the list of them."""
        return self.pieces[0].digest if len(self.pieces) == 1 else digest_of_pieces(self.pieces)

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
        enough = SMALL_PIECE_BYTES << len(self.pieces) // _DOUBLED_EACH
        if size_bytes >= LARGE_FILE_BYTES or (chosen and len(self._gathered) >= enough):
            self.cut()

    def cut(self) -> None:
        """Ends the piece that is being gathered. Nothing when it is empty."""
        if not self._gathered:
            return
        self._coming.append((self._workers.submit(_framed, self._gathered), len(self._gathered)))
        self._gathered = bytearray()
        while len(self._coming) > _AHEAD:
            self._give(*self._coming.popleft())

    def finish(self) -> None:
        """Ends the last piece, and waits until all are given away. Raises TooLarge `archive_too_many_pieces`."""
        self.cut()
        while self._coming:
            self._give(*self._coming.popleft())

    def _give(self, coming: Future[tuple[bytes, str]], tar_bytes: int) -> None:
        if len(self.pieces) == MAX_BLOB_PIECES:
            raise TooLarge(
                f"more than {MAX_BLOB_PIECES} pieces",
                code="archive_too_many_pieces",
                field="workspace",
                hint="leave out what the job does not need (.torgignore), or keep parts of it as named data: torg data put",
            )
        frame, digest = coming.result()
        piece = Piece(digest, self._given, len(frame))
        self.pieces.append(piece)
        self._given += len(frame)
        self._sink(piece, frame, tar_bytes)


_compressors = threading.local()  # one compressor serves one thread at a time


def _framed(data: bytearray) -> tuple[bytes, str]:
    """A zstd frame and its digest; the same for the same data."""
    frame = _stored(data) if _is_noise(data) else _compressor().compress(data)
    return frame, "sha256:" + hashlib.sha256(frame).hexdigest()


def _is_noise(data: bytearray) -> bool:
    """Weights, images and archives do not shrink; trying costs as much as hashing them. A sample out of the middle tells."""
    start = max(0, (len(data) - _SAMPLE_BYTES) // 2)
    sample = bytes(memoryview(data)[start : start + _SAMPLE_BYTES])
    return len(sample) == _SAMPLE_BYTES and len(_compressor().compress(sample)) >= len(sample)


def _stored(data: bytearray) -> bytes:
    """A frame of raw blocks (RFC 8878, 3.1.1): a copy, where the compressor's fastest level costs as much as a sha256."""
    view = memoryview(data)
    parts: list[bytes | memoryview] = [_FRAME_HEAD, len(data).to_bytes(4, "little")]
    for start in range(0, len(data), _BLOCK_BYTES):
        block = view[start : start + _BLOCK_BYTES]
        is_last = _LAST_BLOCK if start + _BLOCK_BYTES >= len(data) else 0
        parts += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return b"".join(parts)


def _compressor() -> zstandard.ZstdCompressor:
    known: zstandard.ZstdCompressor | None = getattr(_compressors, "known", None)
    if known is None:
        known = _compressors.known = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return known
