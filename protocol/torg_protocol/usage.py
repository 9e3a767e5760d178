"""Metering: the record of an interval's useful time (the unit of payment), and a lease's receipt.

A record covers one interval of one lease and is signed by the node and by the marketplace. A receipt sums a lease up and can
be verified by anybody, later, without marketplace or network: `verify_receipt`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from torg_protocol.data import InputFile
from torg_protocol.documents import Document, Wire
from torg_protocol.ids import AccountId, Digest, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.merkle import merkle_root
from torg_protocol.money import cost
from torg_protocol.states import EndReason, LeaseState


class UsageRecord(Document):
    """Useful time of one interval. Intervals of a lease touch, never overlap; `amount` is rounded down once per record."""

    KIND: ClassVar[str] = "usage"

    lease_id: LeaseId
    sequence: int = Field(ge=1)
    job_id: JobId
    attempt: int = Field(ge=1)
    node: NodeId
    vault: VaultAddress
    start_ms: int
    end_ms: int
    useful_ms: int = Field(ge=0)
    price_per_gpu_hour: int = Field(ge=0)
    billable_gpus: int = Field(ge=1)
    amount: int = Field(ge=0)
    final: bool = False

    def problems(self) -> list[str]:
        """What is wrong with this record by itself; empty when nothing."""
        found = []
        if not 0 <= self.useful_ms <= self.end_ms - self.start_ms:
            found.append(f"record {self.sequence}: useful time does not fit its interval")
        if self.amount != cost(self.price_per_gpu_hour, self.billable_gpus, self.useful_ms):
            found.append(f"record {self.sequence}: amount is not price x GPUs x useful time")
        return found


class SignedUsage(Wire):
    """`node_signature` is None when the node vanished: the marketplace then records what the node had claimed and proved by
    durable checkpoints, and signs alone."""

    record: UsageRecord
    node_signature: str | None
    marketplace_signature: str


class OutputFile(Wire):
    path: str
    digest: Digest
    size_bytes: int = Field(ge=0)


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return not value


class ResourceUse(Wire):
    """What a lease used beside its time, as the node measured it. Nothing is billed by it; None: not measured."""

    egress_sent_bytes: int | None = Field(default=None, ge=0, exclude_if=_is_none)
    egress_received_bytes: int | None = Field(default=None, ge=0, exclude_if=_is_none)
    gpu_energy_mj: int | None = Field(default=None, ge=0, exclude_if=_is_none)  # millijoules, all its GPUs together
    # Of the host's processors as a whole while the lease ran: what else ran there is in it.
    cpu_energy_mj: int | None = Field(default=None, ge=0, exclude_if=_is_none)


class Timeline(Wire):
    """Milliseconds since the epoch, by the marketplace's clock."""

    granted_at_ms: int
    started_at_ms: int | None = None
    exited_at_ms: int | None = None
    reported_at_ms: int | None = None
    decided_at_ms: int | None = None


class VerdictSummary(Wire):
    """`result`: passed | failed | inconclusive | not_checked. `measured` are decimal strings by metric name, and of an audit
    how it was drawn (`torg_protocol.audits`)."""

    policy: str
    result: str = Field(pattern=r"^(passed|failed|inconclusive|not_checked)$")
    detail: str = ""
    measured: dict[str, str] = Field(default_factory=dict)
    target: str | None = None


class Receipt(Document):
    KIND: ClassVar[str] = "receipt"

    lease_id: LeaseId
    job_id: JobId
    attempt: int
    client: AccountId
    node: NodeId
    payout_address: str
    vault: VaultAddress
    marketplace: str
    state: LeaseState
    reason: EndReason
    exit_code: int | None = None
    spec_digest: Digest
    image: str
    image_digest: str | None = None
    input_digest: Digest | None = None  # of the workspace
    inputs: tuple[InputFile, ...] = Field(default=(), exclude_if=_is_empty)  # left out as `use` is
    resumed_from: Digest | None = None
    outputs: tuple[OutputFile, ...] = ()
    executor: str | None = None
    isolation: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    # Left out of the signed form when there is none, so that receipts from before it verify.
    use: ResourceUse | None = Field(default=None, exclude_if=_is_none)
    timeline: Timeline
    verdict: VerdictSummary
    price_per_gpu_hour: int
    billable_gpus: int
    billed_ms: int  # useful time that is paid
    unbilled_ms: int  # useful time that is not paid (lost work, rejected work)
    amount: int
    verification_amount: int = Field(
        default=0, ge=0, exclude_if=_is_empty
    )  # of the amount; the rest is for useful time
    usage_root: Digest  # Merkle root over the usage records' digests


class SignedReceipt(Wire):
    receipt: Receipt
    usage: tuple[SignedUsage, ...]
    marketplace_signature: str
    node_signature: str | None = None  # the node's own signature over the same receipt, when it is there to give it


def usage_root(usage: tuple[SignedUsage, ...]) -> Digest:
    return merkle_root([item.record.digest for item in usage])


def verify_receipt(signed: SignedReceipt, *, marketplace: str | None = None) -> list[str]:
    """Every problem of a receipt, by its own signatures and sums; an empty list means that it holds.

    `marketplace` pins the public key that must have signed; without it the key named inside is used, which proves only
    that the receipt is whole.
    """
    receipt, problems = signed.receipt, []
    if marketplace is not None and receipt.marketplace != marketplace:
        problems.append(f"issued by {receipt.marketplace}, not by {marketplace}")
    if not receipt.is_signed_by(receipt.marketplace, signed.marketplace_signature):
        problems.append("the marketplace's signature does not verify")
    if signed.node_signature is not None and not receipt.is_signed_by(receipt.node, signed.node_signature):
        problems.append("the node's signature does not verify")
    if usage_root(signed.usage) != receipt.usage_root:
        problems.append("the usage records are not those of the receipt's root")
    problems += _usage_problems(signed)
    return problems


def _usage_problems(signed: SignedReceipt) -> list[str]:
    receipt, problems, previous_end = signed.receipt, [], None
    for number, item in enumerate(signed.usage, start=1):
        record = item.record
        problems += record.problems()
        if record.sequence != number:
            problems.append(f"record {number} is missing")
        if _work(record) != _work(receipt):
            problems.append(f"record {number} is of another lease, job, vault or node")
        if _terms(record) != _terms(receipt):
            problems.append(f"record {number} has another price or number of GPUs")
        if previous_end is not None and record.start_ms < previous_end:
            problems.append(f"record {number} overlaps the one before")
        previous_end = record.end_ms
        if not record.is_signed_by(receipt.marketplace, item.marketplace_signature):
            problems.append(f"record {number}: the marketplace's signature does not verify")
        if item.node_signature is not None and not record.is_signed_by(receipt.node, item.node_signature):
            problems.append(f"record {number}: the node's signature does not verify")
    if sum(item.record.amount for item in signed.usage) + receipt.verification_amount != receipt.amount:
        problems.append("the amount is not the sum of the usage records and the verification")
    if sum(item.record.useful_ms for item in signed.usage) != receipt.billed_ms:
        problems.append("the billed time is not the sum of the usage records")
    return problems


def _work(item: UsageRecord | Receipt) -> tuple[str | int, ...]:
    return item.lease_id, item.job_id, item.attempt, item.vault, item.node


def _terms(item: UsageRecord | Receipt) -> tuple[int, int]:
    return item.price_per_gpu_hour, item.billable_gpus
