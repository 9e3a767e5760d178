"""Blobs that are named by the list of their pieces.

A piece is named by the sha256 of its bytes, a blob of several pieces by the sha256 of this text, in ASCII:

    torg-pieces-v1
    sha256:<64 hex digits> <bytes of the first piece>
    sha256:<64 hex digits> <bytes of the second piece>
    ...

each line with its line feed. So a large blob is named while it is read, by as many threads as there are cores, its pieces can be sent and checked
in any order, and putting them together in a store reads none of them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from torg_protocol.ids import Digest, is_digest_of_bytes


class NamedPiece(Protocol):
    @property
    def digest(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...


def digest_of_pieces(pieces: Iterable[NamedPiece]) -> Digest:
    """Raises ValueError for a piece that is not named by its bytes: lists do not nest."""
    hasher = hashlib.sha256(b"torg-pieces-v1\n")
    for piece in pieces:
        if not is_digest_of_bytes(piece.digest):
            raise ValueError(f"not the digest of a piece: {piece.digest}")
        hasher.update(f"{piece.digest} {piece.size_bytes}\n".encode())
    return Digest("pieces:" + hasher.hexdigest())
