"""What can be banned, and by which names an image is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

BanKind = Literal["image", "wallet", "node"]
KINDS: tuple[BanKind, ...] = get_args(BanKind)


def names_of(image: str) -> Sequence[str]:
    """Under which names an image may be banned: as it is written, its digest, its repository without tag or digest."""
    found = [image]
    repository, at, digest = image.partition("@")
    if at:
        found.append(digest)
    head, colon, tag = repository.rpartition(":")
    if colon and "/" not in tag and head not in ("sha256", "blob"):
        found.append(head)
    found.append(repository)
    return list(dict.fromkeys(found))
