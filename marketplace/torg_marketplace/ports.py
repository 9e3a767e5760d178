"""What the flows need of the outside world. The composition root picks the implementations; tests bring strict fakes.

None of these may be called inside a transaction, except `Clock` and `Randomness`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from solders.hash import Hash
from solders.pubkey import Pubkey

from torg_chain.captures import LandedCapture
from torg_chain.rpc import SignatureStatus
from torg_chain.vault import OperatorConfig, VaultState
from torg_marketplace.rules.limits import Quota
from torg_marketplace.rules.replay import Distance, Segment
from torg_protocol.errors import TorgError
from torg_protocol.httpsig import VerifiedSignature
from torg_protocol.ids import Digest, NodeId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import CheckpointRef, ToNode


class Clock(Protocol):
    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...


class Randomness(Protocol):
    def bits(self, count: int) -> int:
        """An integer of `count` random bits, unpredictable outside of tests."""
        ...


class Admission(Protocol):
    """Who may ask, and how much: over all processes of a marketplace."""

    async def admit(self, *, signature: VerifiedSignature | None = None, caller: str | None = None) -> Quota | None:
        """Uses the signature up, then counts a request of the caller; either may be left out. What the caller has left; None where
        nobody is limited. Raises Unauthorized `signature_replayed` (nothing is counted then), RateLimited, Unavailable."""
        ...


class BlobStore(Protocol):
    """Content-addressed blobs. What is stored was checked against its digest when it arrived."""

    async def size(self, digest: Digest) -> int | None:
        """Bytes of a stored blob; None when it is not there."""
        ...

    async def upload_url(self, digest: Digest, size_bytes: int, account: str, now_ms: int) -> str:
        """Where `account` may PUT the bytes, for a while. Raises TooLarge `blob_too_large`."""
        ...

    async def put_together(self, blob: BlobRef, pieces: Sequence[BlobRef]) -> None:
        """The blob that stored pieces are in their order. Safe to repeat. Raises NotFound `blob_missing`, Invalid
        `blob_digest_mismatch`, TooLarge."""
        ...

    async def download_url(self, digest: Digest, now_ms: int) -> str: ...

    async def read(self, digest: Digest) -> bytes:
        """For small blobs. Raises NotFound `blob_missing`."""
        ...

    async def fetch_to(self, digest: Digest, path: Path) -> None: ...

    async def write(self, data: bytes) -> Digest: ...

    def stored_in_pieces(self) -> AsyncGenerator[Digest, None]:
        """The blobs that were put together."""
        ...

    async def pieces_of(self, digest: Digest) -> tuple[BlobRef, ...]:
        """In their order; empty for a blob that is stored as a whole, or not at all."""
        ...

    async def forget(self, digest: Digest) -> None:
        """Deletes a blob, but not its pieces. Safe to repeat."""
        ...


class NodeLinks(Protocol):
    """The open connections of nodes to this process."""

    async def send(self, node_id: NodeId, message: ToNode) -> bool:
        """Best effort: False when the node is not connected or the message was not taken. Never raises.

        State in the database is what makes a resend possible: hello and heartbeats repeat what got lost.
        """
        ...

    def connected(self) -> frozenset[NodeId]: ...


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A workload that the marketplace can verify. `target` is the least (or, `better` "lower", the most) that passes."""

    name: str
    workspace_digest: Digest
    metric: str
    target: str
    better: Literal["higher", "lower"] = "higher"
    required_outputs: tuple[str, ...] = ()  # paths that the evaluator opens; the first is what it measures
    policy: Literal["metric", "activation"] = "metric"
    command: tuple[str, ...] = ()  # with "activation": the only one that can be checked


class Catalogue(Protocol):
    def entry(self, name: str) -> CatalogueEntry | None: ...

    def replayable(self, name: str) -> Digest | None:
        """The workspace of a workload whose segments come out the same again; None: there is no such one."""
        ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the evaluator measured, decimal strings by metric. Outputs that it could not read are a measurement without the
    metric, with the reason in `detail`: that is the node's failure, not the evaluator's."""

    values: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""


class EvaluationFailed(TorgError):
    """The evaluator itself failed (no sandbox, no memory, timeout of the machine): says nothing about the work."""

    default_code = "evaluation_failed"


class TookTooLong(EvaluationFailed):
    """Our replay was not at the end of its segment when it should have been: the node's word about the time is a lie, or our machine is slow."""


class Evaluator(Protocol):
    async def evaluate(
        self, catalogue: CatalogueEntry, metric: str, files: Mapping[str, Digest], seed: int
    ) -> Measurement:
        """Recomputes `metric` from the outputs in `files` on held-back data made from the secret `seed`.

        Raises EvaluationFailed when it cannot judge.
        """
        ...


@dataclass(frozen=True, slots=True)
class Planted:
    """A segment from a checkpoint that nobody claims, and the weights that we have come to ourselves. `pieces`: of that checkpoint, when its
    name is theirs."""

    start: CheckpointRef
    answer: Digest
    pieces: tuple[BlobRef, ...] = ()


class Replayer(Protocol):
    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        """Executes the segment again; `model`: the reported model, for the last one. Raises EvaluationFailed when it cannot judge,
        TookTooLong after the segment's `over_after_ms`."""
        ...

    async def compare(self, segment: Segment, model: Digest | None, answer: Digest) -> Distance:
        """Of what somebody else came to. Raises EvaluationFailed when it cannot judge."""
        ...

    async def plant(self, spec: JobSpec, before: Segment, segment: Segment, model: Digest | None, seed: int) -> Planted:
        """Alters where `before` starts and executes both: so the job itself writes the checkpoint that is handed out, and all that is in it
        agrees. Raises EvaluationFailed: also when what was claimed would pass all the same."""
        ...


class ChainPort(Protocol):
    """What the money flows need of torg_chain.rpc.ChainClient. Every call may raise ChainUnavailable."""

    async def vault(self, address: str, *, min_slot: int = 0) -> VaultState | None:
        """The finalized state; raises ChainBehind for one from before `min_slot`."""
        ...

    async def operator_config(self, address: Pubkey) -> OperatorConfig | None: ...

    async def accounts_exist(self, addresses: list[Pubkey]) -> list[bool]: ...

    async def latest_blockhash(self) -> tuple[Hash, int]: ...

    async def block_height(self) -> int:
        """The finalized one."""
        ...

    async def send(self, raw: bytes) -> str:
        """Raises TransactionRejected or TransactionExpired; safe to repeat with the same bytes."""
        ...

    async def signature_status(self, signature: str) -> SignatureStatus: ...

    async def skipped_payees(self, signature: str) -> frozenset[int] | None: ...

    async def landed_captures(
        self, program_id: Pubkey, vault: str, *, from_settled: int, min_slot: int = 0
    ) -> list[LandedCapture]:
        """Finalized ones, oldest first, up to `min_slot` at least; raises ChainBehind, or ChainUnavailable `vault_in_motion` while one may
        still be rolled back."""
        ...

    async def priority_fee(self, accounts: list[Pubkey]) -> int:
        """Micro-lamports per compute unit that recent blocks took."""
        ...

    async def lamports(self, address: Pubkey) -> int: ...

    async def unix_time_s(self) -> int:
        """The chain's own clock, which decides about what may be executed or closed."""
        ...
