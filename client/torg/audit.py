"""Checks of everything that was paid, from the client's own files: signatures, sums, Merkle roots, agreed maxima; with an RPC
address also what the chain says. Nothing is asked of the marketplace."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from torg.journal import JobEntry, Journal, StoredReceipt, VaultEntry
from torg_protocol.open_values import read_openly
from torg_protocol.usage import SignedReceipt, verify_receipt


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem`: somebody was wrong, or lied. `note`: worth knowing, and nobody's fault."""

    kind: Literal["problem", "note"]
    where: str
    text: str


@dataclass
class Audit:
    receipts: int = 0
    usage_records: int = 0
    paid: int = 0  # sum of all receipts, base units
    findings: list[Finding] = field(default_factory=list)
    checked_on_chain: int = 0  # vaults

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == "problem"]


@dataclass(frozen=True, slots=True)
class VaultOnChain:
    """What a vault's account says."""

    settled: int
    balance: int
    depositor: str
    signer: str


def audit_books(journal: Journal, *, marketplace: str, client: str) -> Audit:
    """Every receipt by itself, against its job, and against the other receipts of that job. Needs no network."""
    audit = Audit()
    jobs = {str(job.job_id): job for entry in journal.all_vaults(marketplace) for job in journal.jobs(entry.address)}
    by_job: dict[str, list[SignedReceipt]] = defaultdict(list)
    for stored in journal.receipts():
        try:
            signed = read_openly(SignedReceipt, stored.body)
        except ValidationError:
            audit.findings.append(Finding("problem", stored.lease_id, "what is kept is not a receipt any more"))
            continue
        if signed.receipt.marketplace != marketplace and stored.job_id not in jobs:
            continue  # of another marketplace that this journal also knows
        audit.receipts += 1
        audit.usage_records += len(signed.usage)
        audit.paid += signed.receipt.amount
        by_job[stored.job_id].append(signed)
        audit.findings += _one(stored, signed, marketplace=marketplace, client=client)
    for job_id, receipts in by_job.items():
        audit.findings += _job(job_id, receipts, jobs.get(job_id))
    return audit


def audit_vault(audit: Audit, journal: Journal, entry: VaultEntry, found: VaultOnChain | None, *, client: str) -> None:
    """Adds what the chain says of a vault: never more may have left it than was receipted or is still open."""
    if found is None:
        audit.findings.append(
            Finding("note", entry.address, "is not on the chain: closed, and its rest was taken back")
        )
        return
    audit.checked_on_chain += 1
    for name, actual, wanted in (("depositor", found.depositor, client), ("signer", found.signer, entry.signer)):
        if actual != wanted:
            audit.findings.append(Finding("problem", entry.address, f"its {name} on chain is {actual}, not {wanted}"))
    jobs = journal.jobs(entry.address)
    ended = {str(job.job_id) for job in jobs if job.final_amount is not None}
    receipted = sum(item.amount for item in journal.receipts() if item.job_id in ended)
    open_maximum = sum(job.max_amount for job in jobs if job.final_amount is None)
    if found.settled > receipted + open_maximum:
        text = f"{found.settled} base units have left it; receipts and open jobs justify {receipted + open_maximum}"
        audit.findings.append(Finding("problem", entry.address, text))
    elif found.settled < receipted:
        text = f"{receipted - found.settled} base units are receipted and not captured yet"
        audit.findings.append(Finding("note", entry.address, text))


def _one(stored: StoredReceipt, signed: SignedReceipt, *, marketplace: str, client: str) -> Iterator[Finding]:
    receipt = signed.receipt
    for text in verify_receipt(signed, marketplace=marketplace):
        yield Finding("problem", stored.lease_id, text)
    facts = (
        ("lease", receipt.lease_id, stored.lease_id),
        ("job", receipt.job_id, stored.job_id),
        ("amount", receipt.amount, stored.amount),
        ("client", receipt.client, client),
    )
    for name, actual, wanted in facts:
        if actual != wanted:
            yield Finding("problem", stored.lease_id, f"its {name} is {actual}, not {wanted}")
    if any(item.record.price_per_gpu_hour != receipt.price_per_gpu_hour for item in signed.usage):
        yield Finding("problem", stored.lease_id, "a usage record has another price than the receipt")
    if signed.node_signature is None:
        yield Finding(
            "note", stored.lease_id, "the node has not signed it (it vanished, or had not yet): the marketplace did"
        )


def _job(job_id: str, receipts: Sequence[SignedReceipt], job: JobEntry | None) -> Iterator[Finding]:
    if job is None:
        yield Finding("note", job_id, "has receipts and is not in the journal: it was submitted from another computer")
    elif (total := sum(signed.receipt.amount for signed in receipts)) > job.max_amount:
        text = f"its receipts sum to {total} base units; agreed were {job.max_amount} at most"
        yield Finding("problem", job_id, text)
    if len({signed.receipt.spec_digest for signed in receipts}) > 1:
        yield Finding("problem", job_id, "its attempts did not all run the same spec")
    records = sorted(
        (item.record.start_ms, item.record.end_ms, signed.receipt.lease_id)
        for signed in receipts
        for item in signed.usage
    )
    for before, after in itertools.pairwise(records):
        if before[2] != after[2] and after[0] < before[1]:
            yield Finding("problem", job_id, f"attempts {before[2]} and {after[2]} are both billed for one time")
