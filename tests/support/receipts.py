"""Receipts that hold, signed by keys of the test."""

from __future__ import annotations

from typing import Any

from solders.keypair import Keypair

from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.money import cost
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import Receipt, SignedReceipt, SignedUsage, Timeline, UsageRecord, VerdictSummary, usage_root

PRICE, START_MS, INTERVAL_MS = 1_000_000, 1_800_000_000_000, 600_000


def make_receipt(
    marketplace: Keypair,
    node: Keypair,
    number: int = 1,
    *,
    client: str = "client",
    vault: str = "vault",
    **changes: Any,
) -> SignedReceipt:
    """Of a lease with two intervals of ten minutes; `changes` are members of the receipt."""
    lease, job = LeaseId(f"lease_{number}"), JobId(f"job_{number}")
    usage = tuple(_usage(marketplace, node, lease, job, vault, sequence) for sequence in (1, 2))
    values: dict[str, Any] = {
        "lease_id": lease,
        "job_id": job,
        "attempt": 1,
        "client": AccountId(client),
        "node": NodeId(str(node.pubkey())),
        "payout_address": str(node.pubkey()),
        "vault": VaultAddress(vault),
        "marketplace": str(marketplace.pubkey()),
        "state": LeaseState.VERIFIED,
        "reason": EndReason.COMPLETED,
        "exit_code": 0,
        "spec_digest": sha256_digest(b"spec"),
        "image": "python",
        "timeline": Timeline(granted_at_ms=START_MS),
        "verdict": VerdictSummary(policy="none", result="not_checked"),
        "price_per_gpu_hour": PRICE,
        "billable_gpus": 1,
        "billed_ms": 2 * INTERVAL_MS,
        "unbilled_ms": 0,
        "amount": sum(item.record.amount for item in usage),
        "usage_root": usage_root(usage),
    }
    receipt = Receipt(**(values | changes))
    return SignedReceipt(
        receipt=receipt,
        usage=usage,
        marketplace_signature=receipt.sign(marketplace),
        node_signature=receipt.sign(node),
    )


def _usage(marketplace: Keypair, node: Keypair, lease: LeaseId, job: JobId, vault: str, sequence: int) -> SignedUsage:
    start = START_MS + (sequence - 1) * INTERVAL_MS
    record = UsageRecord(
        lease_id=lease,
        sequence=sequence,
        job_id=job,
        attempt=1,
        node=NodeId(str(node.pubkey())),
        vault=VaultAddress(vault),
        start_ms=start,
        end_ms=start + INTERVAL_MS,
        useful_ms=INTERVAL_MS,
        price_per_gpu_hour=PRICE,
        billable_gpus=1,
        amount=cost(PRICE, 1, INTERVAL_MS),
        final=sequence == 2,
    )
    return SignedUsage(record=record, node_signature=record.sign(node), marketplace_signature=record.sign(marketplace))
