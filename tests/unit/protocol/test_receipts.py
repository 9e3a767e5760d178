"""A receipt that holds, and every way to change it: each is noticed without marketplace or network."""

from __future__ import annotations

import pytest
from solders.keypair import Keypair

from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.money import cost
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import (
    Receipt,
    ResourceUse,
    SignedReceipt,
    SignedUsage,
    Timeline,
    UsageRecord,
    VerdictSummary,
    usage_root,
    verify_receipt,
)

MARKETPLACE, NODE, OTHER = (Keypair.from_seed(bytes([number] * 32)) for number in (1, 2, 3))
PRICE = 900_000


def record(sequence: int, start_ms: int, end_ms: int, useful_ms: int, **changes: object) -> UsageRecord:
    values = {
        "lease_id": LeaseId("lease_1"),
        "sequence": sequence,
        "job_id": JobId("job_1"),
        "attempt": 1,
        "node": NodeId(str(NODE.pubkey())),
        "vault": VaultAddress("vault"),
        "start_ms": start_ms,
        "end_ms": end_ms,
        "useful_ms": useful_ms,
        "price_per_gpu_hour": PRICE,
        "billable_gpus": 1,
        "amount": cost(PRICE, 1, useful_ms),
    }
    return UsageRecord.model_validate({**values, **changes})


def signed_record(item: UsageRecord, *, node: Keypair | None = NODE, marketplace: Keypair = MARKETPLACE) -> SignedUsage:
    return SignedUsage(
        record=item,
        node_signature=None if node is None else item.sign(node),
        marketplace_signature=item.sign(marketplace),
    )


def receipt_over(usage: tuple[SignedUsage, ...], **changes: object) -> SignedReceipt:
    values = {
        "lease_id": LeaseId("lease_1"),
        "job_id": JobId("job_1"),
        "attempt": 1,
        "client": AccountId("client"),
        "node": NodeId(str(NODE.pubkey())),
        "payout_address": "payout",
        "vault": VaultAddress("vault"),
        "marketplace": str(MARKETPLACE.pubkey()),
        "state": LeaseState.VERIFIED,
        "reason": EndReason.COMPLETED,
        "exit_code": 0,
        "spec_digest": sha256_digest(b"spec"),
        "image": "host-python",
        "timeline": Timeline(granted_at_ms=0, started_at_ms=10, exited_at_ms=50),
        "verdict": VerdictSummary(policy="none", result="not_checked"),
        "price_per_gpu_hour": PRICE,
        "billable_gpus": 1,
        "billed_ms": sum(item.record.useful_ms for item in usage),
        "unbilled_ms": 0,
        "amount": sum(item.record.amount for item in usage),
        "usage_root": usage_root(usage),
    }
    receipt = Receipt.model_validate({**values, **changes})
    return SignedReceipt(
        receipt=receipt,
        usage=usage,
        marketplace_signature=receipt.sign(MARKETPLACE),
        node_signature=receipt.sign(NODE),
    )


USAGE = (signed_record(record(1, 0, 600_000, 590_000)), signed_record(record(2, 600_000, 700_000, 100_000, final=True)))
GOOD = receipt_over(USAGE)
ME = str(MARKETPLACE.pubkey())


def test_a_receipt_holds_also_after_a_journey_through_json() -> None:
    assert verify_receipt(GOOD, marketplace=ME) == []
    assert verify_receipt(SignedReceipt.model_validate_json(GOOD.model_dump_json()), marketplace=ME) == []


CHANGED = {
    "attempt": 2,
    "amount": 1,
    "billed_ms": 1,
    "exit_code": 1,
    "unbilled_ms": 5,
    "price_per_gpu_hour": 1,
    "verification_amount": 1,
}


@pytest.mark.parametrize("field", sorted(Receipt.model_fields))
def test_no_field_of_a_receipt_can_be_changed(field: str) -> None:
    value = getattr(GOOD.receipt, field)
    changed: object
    if field in CHANGED:
        changed = CHANGED[field]
    elif isinstance(value, str) and not isinstance(value, LeaseState | EndReason):
        changed = value[:-1] + ("1" if value[-1] != "1" else "2")
    else:
        changed = {
            "state": LeaseState.REJECTED,
            "reason": EndReason.OOM,
            "billable_gpus": 2,
            "inputs": ({"path": "/data", "digest": sha256_digest(b"a"), "name": "mnist"},),
            "outputs": ({"path": "a", "digest": sha256_digest(b"a"), "size_bytes": 1},),
            "gpu_uuids": ("GPU-1",),
            "timeline": Timeline(granted_at_ms=1),
            "verdict": VerdictSummary(policy="none", result="passed"),
            "use": ResourceUse(egress_sent_bytes=1),
        }.get(field, "sha256:" + "0" * 64)
    receipt = Receipt.model_validate({**GOOD.receipt.model_dump(), field: changed})
    assert receipt != GOOD.receipt

    problems = verify_receipt(GOOD.model_copy(update={"receipt": receipt}), marketplace=ME)
    assert any("signature does not verify" in problem or "issued by" in problem for problem in problems)


@pytest.mark.parametrize("field", sorted(UsageRecord.model_fields))
def test_no_field_of_a_usage_record_can_be_changed(field: str) -> None:
    value = getattr(USAGE[1].record, field)
    changed = (not value) if isinstance(value, bool) else value + (1 if isinstance(value, int) else "x")
    item = UsageRecord.model_validate({**USAGE[1].record.model_dump(), field: changed})
    tampered = GOOD.model_copy(update={"usage": (USAGE[0], USAGE[1].model_copy(update={"record": item}))})

    problems = verify_receipt(tampered, marketplace=ME)
    assert "record 2: the marketplace's signature does not verify" in problems
    assert "the usage records are not those of the receipt's root" in problems


@pytest.mark.parametrize(
    ("usage", "problem"),
    [
        ((USAGE[1],), "record 1 is missing"),
        ((USAGE[0], signed_record(record(2, 599_999, 700_000, 100_000))), "record 2 overlaps the one before"),
        ((signed_record(record(1, 0, 10, 11)),), "record 1: useful time does not fit its interval"),
        ((signed_record(record(1, 0, 10, 10, amount=7)),), "record 1: amount is not price x GPUs x useful time"),
        ((signed_record(record(1, 0, 10, 10, vault="another")),), "record 1 is of another lease, job, vault or node"),
        ((signed_record(record(1, 0, 10, 10, attempt=2)),), "record 1 is of another lease, job, vault or node"),
        (
            (signed_record(record(1, 0, 10, 10, price_per_gpu_hour=2 * PRICE, amount=cost(2 * PRICE, 1, 10))),),
            "record 1 has another price or number of GPUs",
        ),
        ((signed_record(record(1, 0, 10, 10), node=OTHER),), "record 1: the node's signature does not verify"),
        (
            (signed_record(record(1, 0, 10, 10), marketplace=OTHER),),
            "record 1: the marketplace's signature does not verify",
        ),
    ],
)
def test_a_marketplace_that_signs_nonsense_is_found_out_too(usage: tuple[SignedUsage, ...], problem: str) -> None:
    assert problem in verify_receipt(receipt_over(usage), marketplace=ME)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"amount": 1}, "the amount is not the sum of the usage records and the verification"),
        ({"verification_amount": 1}, "the amount is not the sum of the usage records and the verification"),
        ({"billed_ms": 1}, "the billed time is not the sum of the usage records"),
    ],
)
def test_signed_sums_must_be_sums(changes: dict[str, int], problem: str) -> None:
    assert verify_receipt(receipt_over(USAGE, **changes), marketplace=ME) == [problem]


def test_the_issuer_can_be_pinned() -> None:
    someone = str(OTHER.pubkey())
    assert verify_receipt(GOOD, marketplace=someone) == [f"issued by {ME}, not by {someone}"]


def test_a_node_that_vanished_leaves_records_that_the_marketplace_signs_alone() -> None:
    alone = receipt_over((signed_record(record(1, 0, 10, 10), node=None),))
    assert verify_receipt(alone.model_copy(update={"node_signature": None}), marketplace=ME) == []
