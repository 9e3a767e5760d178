"""Direct rental: a client and a node without anybody between them. What they sign and send, and the arithmetic of intervals.

The node is the operator of the client's vault. The client's cap always covers what the node has worked and one interval more; the
node works at most one interval beyond the cap that it holds. So whoever walks away, the other loses one interval at most: the
client what it authorised ahead, the node what it worked ahead (each rounded to a base unit). Both compute with `Rate`.
"""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from torg_protocol.caps import SignedCap
from torg_protocol.documents import Document, View, Wire
from torg_protocol.ids import AccountId, Digest, NodeId, VaultAddress
from torg_protocol.jobspec import JobSpec
from torg_protocol.money import MAX_U64, MS_PER_HOUR, cost

RENTAL_ID_PATTERN = r"^rent_[0-9a-hjkmnp-tv-z]{26}$"


class RentalState(enum.StrEnum):
    PREPARING = "preparing"  # files, image, disk: not billed
    RUNNING = "running"
    ENDED = "ended"  # the container is gone; logs and outputs are kept until the vault is closed
    CLOSED = "closed"  # so is the vault


class RentalEnd(enum.StrEnum):
    """Why a rental's container ended, or never ran."""

    COMPLETED = "completed"
    FAILED_EXIT = "failed_exit"
    OOM = "oom"
    DISK_FULL = "disk_full"
    MAX_DURATION = "max_duration"
    BUDGET = "budget"  # all that the client agreed to spend is used up
    STOPPED = "stopped"  # by the client
    NO_CAP = "no_cap"  # the client raised its cap no more
    VAULT_CLOSING = "vault_closing"  # the client began to take its money back
    UNPAID = "unpaid"  # captures did not land, and the node's limit was reached
    HOST = "host"  # the node's owner, or a fault of the machine
    START_FAILED = "start_failed"  # nothing ran, nothing is owed


@dataclass(frozen=True, slots=True)
class Rate:
    """What useful time costs, and how far ahead either side goes. Amounts in base units, since the container's start.

    Every method is monotone; `covered_ms` is the exact inverse of `amount` with its one rounding.
    """

    price_per_gpu_hour: int
    billable_gpus: int
    interval_ms: int

    def amount(self, useful_ms: int) -> int:
        return cost(self.price_per_gpu_hour, self.billable_gpus, useful_ms)

    def covered_ms(self, cap: int) -> int:
        """The longest useful time that costs no more than `cap`."""
        return ((cap + 1) * MS_PER_HOUR - 1) // (self.price_per_gpu_hour * self.billable_gpus)

    def works_until_ms(self, cap: int, max_amount: int) -> int:
        """The node's rule: the useful time at which it stops when no higher cap comes."""
        return min(self.covered_ms(cap) + self.interval_ms, self.covered_ms(max_amount))

    def due(self, useful_ms: int, cap: int) -> int:
        """The node's rule: what it may have captured in all, by now."""
        return min(self.amount(useful_ms), cap)

    def next_cap(self, claimed_ms: int, seen_ms: int, max_amount: int) -> int:
        """The client's rule: the cap to sign now. `seen_ms`: by its own clock since it asked for the start, whatever the node claims."""
        return min(self.amount(max(0, min(claimed_ms, seen_ms)) + self.interval_ms), max_amount)


class RentalOffer(Document):
    """What a node rents itself out for, signed by its key. The money is under the operator config of that same key."""

    KIND: ClassVar[str] = "rental-offer"

    node: NodeId
    genesis_hash: str
    program_id: str
    mint: str
    decimals: int = Field(ge=0, le=18)
    price_per_gpu_hour: int = Field(gt=0)  # base units; per slot-hour without a GPU
    interval_ms: int = Field(ge=500, le=3_600_000)
    min_grace_s: int = Field(ge=0)
    isolation: tuple[str, ...]
    own_root: bool = Field(default=False, exclude_if=operator.not_)  # left out of the signed form: older ones verify
    executor: str
    gpu_class: str
    gpus: int = Field(ge=0)
    slots: int = Field(ge=1)
    issued_at_ms: int


class SignedRentalOffer(Wire):
    offer: RentalOffer
    signature: str

    def is_valid(self) -> bool:
        return self.offer.is_signed_by(self.offer.node, self.signature)


class RentalTerms(Document):
    """What both sides sign. One vault serves one rental. `max_amount`: the node stops there, whatever caps say."""

    KIND: ClassVar[str] = "rental-terms"

    rental_id: str = Field(pattern=RENTAL_ID_PATTERN)
    node: NodeId
    client: AccountId
    vault: VaultAddress
    spec: JobSpec
    price_per_gpu_hour: int = Field(gt=0, le=MAX_U64)
    interval_ms: int = Field(ge=500, le=3_600_000)
    max_amount: int = Field(gt=0, le=MAX_U64)
    agreed_at_ms: int

    @property
    def rate(self) -> Rate:
        return Rate(self.price_per_gpu_hour, self.spec.resources.billable_gpus, self.interval_ms)


class RentalQuestion(Wire):
    """Whether the node would take this now. Asked before a vault is opened; nothing is reserved."""

    spec: JobSpec


class StartRental(Wire):
    """`cap` covers one interval. Safe to repeat: the same terms are the same rental."""

    terms: RentalTerms
    signature: str  # the client's
    cap: SignedCap


class RentalCap(Wire):
    cap: SignedCap


class RentalOutputs(Wire):
    """A tar + zstd of the output folder. Whoever knows the digest may fetch it: only the client is told."""

    digest: Digest
    size_bytes: int


class RentalView(View):
    """What the node says. The client believes `useful_ms` as far as its own clock allows it. Amounts in base units."""

    rental_id: str
    state: RentalState
    node_signature: str  # over the terms: the agreement
    needs_workspace: bool
    started_at_ms: int | None
    useful_ms: int
    cap: int
    captured: int
    end: RentalEnd | None = None
    exit_code: int | None = None
    detail: str = ""
    outputs: RentalOutputs | None = None


class CloseRequest(Wire):
    """`blockhash` of the closing transaction, which both sides build from it, so that nobody signs what it has not made."""

    blockhash: str


class CloseConsent(Wire):
    """The operator's signature over that transaction. `captured`: all that it will ever take."""

    signature: str
    captured: int
