"""Proof of hardware on the wire: what a marketplace asks a machine to compute, and what the machine says.

A window goes: `ProofWanted` -> `ProofReady` (libraries loaded, device warm) -> `ProofChallenge` (the nonce: work and timing begin) ->
`ProofCommitted` chain -> `ProofCommitted` walk -> `ProofAsked` (rows, drawn after the commitments) -> `ProofOpened` -> `ProofJudged`.
No message carries a time: the verifier looks at its own clock. The arithmetic is in torg_host.hardware_proof.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from torg_protocol.documents import View, Wire
from torg_protocol.ids import Digest, NodeId

BLOCK_ROWS = 256  # rows whose digests are one leaf of the commitment
PROTOCOL = b"torg-hardware-proof-v1"
Unit = Annotated[str, Field(pattern=r"^(cpu|gpu:[0-9]{1,2})$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ChainTask(Wire):
    """X <- narrow(X @ B), `rounds` times: X of `rows` x `width`, B of `width` x `width`, int8. 2 * rows * width^2 * rounds operations."""

    rows: int = Field(ge=BLOCK_ROWS, le=1 << 20, multiple_of=BLOCK_ROWS)
    width: int = Field(ge=64, le=8192, multiple_of=64)
    rounds: int = Field(ge=1, le=1 << 14)

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.width**2 * self.rounds


class WalkTask(Wire):
    """Fill `rows` x `width` bytes in `passes` passes that mix rows, then `lanes` walks of `steps` dependent reads of whole rows."""

    rows: int = Field(ge=16, le=1 << 28)
    width: int = Field(ge=64, le=4096, multiple_of=64)
    passes: int = Field(ge=1, le=6)
    lanes: int = Field(ge=1, le=1 << 16)
    steps: int = Field(ge=1, le=1 << 12)

    @property
    def size_bytes(self) -> int:
        return self.rows * self.width

    @property
    def fill_operations(self) -> int:
        return 2 * self.rows * self.width**2 * self.passes

    @property
    def operations_without_storage(self) -> int:
        """Of a walk that recomputes every row that it reads: 2^passes leaves each, (2^passes - 1) products."""
        return self.lanes * self.steps * ((1 << self.passes) - 1) * 2 * self.width**2


class ProofWanted(Wire):
    """Marketplace -> node: load what you need for this unit and say when you are ready. Nothing is timed yet."""

    type: Literal["proof_wanted"] = "proof_wanted"
    proof_id: str
    unit: Unit
    ready_within_ms: int = Field(gt=0)


class ProofReady(Wire):
    type: Literal["proof_ready"] = "proof_ready"
    proof_id: str


class ProofChallenge(Wire):
    """`nonce` is fresh; `matrix_seed` is shared by all challenges of a day, so that the verifier makes B once."""

    type: Literal["proof_challenge"] = "proof_challenge"
    proof_id: str
    unit: Unit
    nonce: Hex
    matrix_seed: Hex
    chain: ChainTask
    walk: WalkTask
    answer_within_ms: int = Field(gt=0)

    def seed(self, label: str, node: NodeId) -> bytes:
        """Of this node's own work: nobody else's answer fits."""
        return _hash(label.encode(), bytes.fromhex(self.nonce), node.encode(), self.unit.encode())

    def shared_seed(self, label: str) -> bytes:
        return _hash(label.encode(), bytes.fromhex(self.matrix_seed))


class ProofCommitted(Wire):
    """`chain`: `root` over the row digests. `walk`: `lanes`, the final states (4 bytes each, little-endian, base64). `arithmetic` names
    the path that computed it, for statistics only."""

    type: Literal["proof_committed"] = "proof_committed"
    proof_id: str
    phase: Literal["chain", "walk"]
    root: Digest | None = None
    lanes: str = Field(default="", max_length=400_000)
    arithmetic: str = Field(default="", max_length=64)


class ProofAsked(Wire):
    """Open these blocks of row digests."""

    type: Literal["proof_asked"] = "proof_asked"
    proof_id: str
    blocks: tuple[int, ...] = Field(max_length=256)


class OpenedBlock(Wire):
    number: int = Field(ge=0)
    digests: str = Field(max_length=4_096)  # base64 of BLOCK_ROWS digests of 8 bytes, little-endian
    path: tuple[Digest, ...] = Field(max_length=64)


class ProofOpened(Wire):
    type: Literal["proof_opened"] = "proof_opened"
    proof_id: str
    blocks: tuple[OpenedBlock, ...] = Field(max_length=256)


ProofState = Literal["unproven", "proven", "quarantined", "banned"]


class UnitProof(Wire):
    """What is established of one unit. `gops`: int8 operations per second, in 10^9, lower bound of its class; 0: nothing."""

    unit: Unit
    gops: int = Field(default=0, ge=0)
    memory_bytes: int = Field(default=0, ge=0)  # filled and walked
    arithmetic: str = ""


class ProofStatus(View):
    state: ProofState = "unproven"
    units: tuple[UnitProof, ...] = ()
    judged_at_ms: int = 0
    detail: str = ""


class ProofJudged(Wire):
    """Marketplace -> node: for its owner's eyes."""

    type: Literal["proof_judged"] = "proof_judged"
    proof_id: str
    passed: bool
    detail: str
    status: ProofStatus


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256(PROTOCOL)
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.digest()
