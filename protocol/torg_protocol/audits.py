"""Which work is looked at again is drawn so that its node cannot foretell it, and can check it afterwards.

The draw is the marketplace's Ed25519 signature over the lease and the root of everything that the node has committed to. Nobody but the
marketplace can make it, and not before the commitment; made again it is the same (RFC 8032 signatures are deterministic), so a
verdict that is tried twice draws the same twice. Anybody can check it with the marketplace's public key: `check_draw`.

What it does not exclude: a marketplace that signs with another nonce than RFC 8032 says gets other draws, and nobody would see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from torg_protocol.documents import Document
from torg_protocol.ids import Digest, LeaseId
from torg_protocol.merkle import merkle_root

PERMILLE = 1000


class AuditDraw(Document):
    """`committed`: `commitment_root` of the lease's outputs and checkpoints."""

    KIND: ClassVar[str] = "audit-draw"

    lease_id: LeaseId
    committed: Digest


class Dice:
    """Numbers that follow from a draw, the same for everybody who has it."""

    def __init__(self, signature: str) -> None:
        self._seed, self._thrown = hashlib.sha256(b"torg audit dice" + signature.encode()).digest(), 0

    def below(self, count: int) -> int:
        """Evenly in 0..count-1; the bias of 256 bits is beyond measure."""
        self._thrown += 1
        digest = hashlib.sha256(self._seed + self._thrown.to_bytes(4, "big")).digest()
        return int.from_bytes(digest, "big") % count

    def choose(self, of: int, count: int) -> list[int]:
        """`count` different numbers below `of`, in order; all of them, when there are no more."""
        left = list(range(of))
        return sorted(left.pop(self.below(len(left))) for _ in range(min(count, of)))


def commitment_root(checkpoints: Sequence[Digest], outputs: Sequence[Digest]) -> Digest:
    """Both in the order in which they were reported."""
    return merkle_root([*checkpoints, *outputs])


def is_drawn(signature: str, permille: int) -> bool:
    """Whether the lease is audited, at this rate. The first throw of the dice."""
    return Dice(signature).below(PERMILLE) < permille


def check_draw(draw: AuditDraw, signature: str, marketplace: str, permille: int, audited: bool) -> list[str]:
    """What is wrong with an audit that took place, or did not; empty when nothing."""
    found = []
    if not draw.is_signed_by(marketplace, signature):
        found.append("the draw is not signed by the marketplace")
    if is_drawn(signature, permille) != audited:
        found.append("the draw says otherwise")
    return found
