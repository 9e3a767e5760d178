"""The commitment to a chain's row digests: a Merkle root over blocks of them, and openings of single blocks."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from torg_host.hardware_proof.arithmetic import Int64s
from torg_protocol.ids import Digest
from torg_protocol.merkle import merkle_path, merkle_root, verify_path
from torg_protocol.proofs import BLOCK_ROWS, ChainTask, OpenedBlock


def commit(digests: Int64s) -> Digest:
    return merkle_root(_leaves(digests))


def open_blocks(digests: Int64s, blocks: Iterable[int]) -> tuple[OpenedBlock, ...]:
    """Raises IndexError for a block that is not there."""
    leaves = _leaves(digests)
    opened = []
    for number in sorted(set(blocks)):
        if not 0 <= number < len(leaves):
            raise IndexError(f"block {number} of {len(leaves)}")
        data = base64.b64encode(_block(digests, number)).decode()
        opened.append(OpenedBlock(number=number, digests=data, path=tuple(merkle_path(leaves, number))))
    return tuple(opened)


def blocks_of(rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({row // BLOCK_ROWS for row in rows}))


def opened_digests(
    task: ChainTask, root: Digest, opened: Sequence[OpenedBlock], rows: Sequence[int]
) -> Mapping[int, int] | None:
    """The digest of each row that was asked for; None when one is not opened, or an opening does not belong to the root."""
    count = task.rows // BLOCK_ROWS
    blocks: dict[int, Int64s] = {}
    for block in opened:
        try:
            data = base64.b64decode(block.digests, validate=True)
        except binascii.Error:
            return None
        if len(data) != 8 * BLOCK_ROWS or not verify_path(_leaf(data), block.number, count, block.path, root):
            return None
        blocks[block.number] = np.frombuffer(data, dtype="<i8")
    if not set(blocks_of(rows)) <= set(blocks):
        return None
    return {row: int(blocks[row // BLOCK_ROWS][row % BLOCK_ROWS]) for row in rows}


def _block(digests: Int64s, number: int) -> bytes:
    return digests[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS].astype("<i8").tobytes()


def _leaf(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def _leaves(digests: Int64s) -> list[Digest]:
    return [_leaf(_block(digests, number)) for number in range(len(digests) // BLOCK_ROWS)]
