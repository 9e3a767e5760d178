"""What an upload asks of the store, and what of the file its answer wants: the same for whoever uploads, a client or a node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torg_host.archive_pieces import Piece
from torg_protocol.api import BlobUpload

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as one blob. `pieces`: what makes it up, in order; none when it goes as a whole."""

    whole: Piece
    pieces: tuple[Piece, ...]
    based_on: str | None = None  # a blob that whoever uploads may read, and that has pieces in common

    @classmethod
    def of(cls, digest: str, size_bytes: int, pieces: Sequence[Piece], based_on: str | None = None) -> Upload:
        """One piece is the whole."""
        whole = Piece(digest, 0, size_bytes)
        return cls(whole, tuple(pieces), based_on) if len(pieces) > 1 else cls(whole, ())

    def request(self) -> dict[str, Any]:
        """The body of POST /v1/blobs."""
        named = [{"digest": piece.digest, "size_bytes": piece.size_bytes} for piece in self.pieces]
        body = {"digest": self.whole.digest, "size_bytes": self.whole.size_bytes, "pieces": named}
        return body if self.based_on is None else {**body, "based_on": self.based_on}

    def wanted(self, answer: BlobUpload) -> list[tuple[Piece, str]]:
        """Which parts of the file go to which URLs. After pieces one asks again, and the store puts them together."""
        by_digest = {piece.digest: piece for piece in self.pieces}
        whole = [(self.whole, answer.url)] if answer.url is not None else []
        return whole + [(by_digest[item.digest], item.url) for item in answer.missing]


async def part_of(path: Path, offset: int, size_bytes: int) -> AsyncIterator[bytes]:
    """The bytes of a part of a file, in blocks."""
    left = size_bytes
    with path.open("rb") as file:
        file.seek(offset)
        while left and (data := file.read(min(left, _READ_BYTES))):
            yield data
            left -= len(data)
