"""Merkle tree over digests (RFC 6962 shape: leaves and inner nodes are hashed with different prefixes)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torg_protocol.ids import Digest


def merkle_root(leaves: Sequence[Digest]) -> Digest:
    """Root over leaf digests in order; of no leaves: the hash of nothing."""
    return Digest("sha256:" + _root([_leaf(leaf) for leaf in leaves]).hex())


def merkle_path(leaves: Sequence[Digest], index: int) -> list[Digest]:
    """Siblings from the leaf up, for `verify_path`."""
    return [Digest("sha256:" + sibling.hex()) for sibling in _path([_leaf(leaf) for leaf in leaves], index)]


def verify_path(leaf: Digest, index: int, count: int, path: Sequence[Digest], root: Digest) -> bool:
    """Whether `leaf` is number `index` of `count` leaves under `root` (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < count:
        return False
    position, last, node = index, count - 1, _leaf(leaf)
    for digest in path:
        sibling = bytes.fromhex(digest.removeprefix("sha256:"))
        if last == 0:
            return False
        if position % 2 == 1 or position == last:
            node = _inner(sibling, node)
            while position % 2 == 0 and position != 0:
                position, last = position // 2, last // 2
        else:
            node = _inner(node, sibling)
        position, last = position // 2, last // 2
    return last == 0 and "sha256:" + node.hex() == root


def _leaf(digest: Digest) -> bytes:
    return hashlib.sha256(b"\0" + bytes.fromhex(digest.removeprefix("sha256:"))).digest()


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1


def _root(nodes: list[bytes]) -> bytes:
    if not nodes:
        return hashlib.sha256(b"").digest()
    if len(nodes) == 1:
        return nodes[0]
    middle = _split(len(nodes))
    return _inner(_root(nodes[:middle]), _root(nodes[middle:]))


def _path(nodes: list[bytes], index: int) -> list[bytes]:
    if len(nodes) <= 1:
        return []
    middle = _split(len(nodes))
    if index < middle:
        return [*_path(nodes[:middle], index), _root(nodes[middle:])]
    return [*_path(nodes[middle:], index - middle), _root(nodes[:middle])]
