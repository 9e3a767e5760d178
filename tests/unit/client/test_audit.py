"""An audit finds whatever was changed in a receipt or taken out of the books, from the client's own files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from tests.support.receipts import make_receipt
from torg.audit import Audit, VaultOnChain, audit_books, audit_vault
from torg.journal import Journal, VaultEntry
from torg_protocol.usage import Receipt, SignedReceipt, UsageRecord

MARKETPLACE, NODE, CLIENT = (Keypair.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
VAULT = VaultEntry("vault", str(MARKETPLACE.pubkey()), 1, 3_600, "session")
ME = str(CLIENT.pubkey())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_vault(VAULT, 1)
    return journal


def keep(journal: Journal, signed: SignedReceipt, *, body: str | None = None, max_amount: int = 400_000) -> None:
    receipt = signed.receipt
    journal.reserve(vault="vault", idempotency_key=receipt.job_id, name="job", max_amount=max_amount, now_ms=1)
    journal.submitted(receipt.job_id, receipt.job_id)
    journal.add_receipt(
        lease_id=receipt.lease_id,
        job_id=receipt.job_id,
        amount=receipt.amount,
        body=body or signed.model_dump_json(),
    )
    journal.ended(receipt.job_id)


def audit(journal: Journal) -> Audit:
    return audit_books(journal, marketplace=str(MARKETPLACE.pubkey()), client=ME)


def receipt(**changes: Any) -> SignedReceipt:
    return make_receipt(MARKETPLACE, NODE, client=ME, **changes)


def test_what_holds_has_no_findings(journal: Journal) -> None:
    keep(journal, receipt())
    report = audit(journal)
    assert (report.findings, report.receipts, report.usage_records, report.paid) == ([], 1, 2, 333_332)


def changed(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, *value] or ["GPU-x"]
        case dict():
            return {**value, next(iter(value)): changed(next(iter(value.values())))}
        case _:
            return "x"


# With these values as they stand the document is of another shape; each still must be found.
PLAUSIBLE: dict[str, Any] = {
    "state": "rejected",
    "reason": "oom",
    "exit_code": 1,
    "spec_digest": "sha256:" + "1" * 64,
    "input_digest": "sha256:" + "1" * 64,
    "resumed_from": "sha256:" + "1" * 64,
    "usage_root": "sha256:" + "1" * 64,
    "outputs": [{"path": "a", "digest": "sha256:" + "1" * 64, "size_bytes": 1}],
    "inputs": [{"path": "/data", "digest": "sha256:" + "1" * 64}],
    "gpu_uuids": ["GPU-x"],
    "use": {"egress_sent_bytes": 1},
    "verification_amount": 1,
}


@pytest.mark.parametrize("field", Receipt.model_fields)
def test_a_changed_field_of_a_receipt_is_found(journal: Journal, field: str) -> None:
    body = json.loads(receipt().model_dump_json())
    body["receipt"][field] = PLAUSIBLE.get(field, changed(body["receipt"].get(field)))
    SignedReceipt.model_validate(body)  # it still reads like one
    keep(journal, receipt(), body=json.dumps(body))
    assert [item.where for item in audit(journal).problems][:1] == ["lease_1"]


@pytest.mark.parametrize("field", UsageRecord.model_fields)
def test_a_changed_field_of_a_usage_record_is_found(journal: Journal, field: str) -> None:
    body = json.loads(receipt().model_dump_json())
    record = body["usage"][1]["record"]
    record[field] = changed(record[field])
    keep(journal, receipt(), body=json.dumps(body))
    texts = [item.text for item in audit(journal).problems]
    assert "the usage records are not those of the receipt's root" in texts


@pytest.mark.parametrize("which", ["marketplace_signature", "node_signature"])
def test_a_signature_of_another_receipt_is_found(journal: Journal, which: str) -> None:
    body = json.loads(receipt().model_dump_json())
    body[which] = json.loads(receipt(exit_code=1).model_dump_json())[which]
    keep(journal, receipt(), body=json.dumps(body))
    assert [item.text for item in audit(journal).problems] == [
        f"the {which.removesuffix('_signature')}'s signature does not verify"
    ]


def test_a_receipt_by_another_marketplace_or_for_another_client_is_found(journal: Journal) -> None:
    keep(journal, make_receipt(CLIENT, NODE, client="somebody"))
    texts = [item.text for item in audit(journal).problems]
    assert f"issued by {ME}, not by {MARKETPLACE.pubkey()}" in texts
    assert f"its client is somebody, not {ME}" in texts


def test_more_than_was_agreed_is_found(journal: Journal) -> None:
    keep(journal, receipt(), max_amount=333_331)
    assert [item.text for item in audit(journal).problems] == [
        "its receipts sum to 333332 base units; agreed were 333331 at most"
    ]


@pytest.mark.parametrize(
    ("on_chain", "kind", "said"),
    [
        (VaultOnChain(333_332, 0, ME, "session"), None, ""),
        (VaultOnChain(333_333, 0, ME, "session"), "problem", "333333 base units have left it"),
        (VaultOnChain(333_000, 0, ME, "session"), "note", "332 base units are receipted and not captured yet"),
        (VaultOnChain(333_332, 0, "thief", "session"), "problem", "its depositor on chain is thief"),
        (VaultOnChain(333_332, 0, ME, "thief"), "problem", "its signer on chain is thief"),
        (None, "note", "is not on the chain"),
    ],
)
def test_what_the_chain_says_is_compared_to_the_unit(
    journal: Journal, on_chain: VaultOnChain | None, kind: str | None, said: str
) -> None:
    keep(journal, receipt())
    report = audit(journal)
    audit_vault(report, journal, VAULT, on_chain, client=ME)
    assert [item.kind for item in report.findings] == ([kind] if kind else [])
    assert all(said in item.text for item in report.findings)
    assert report.checked_on_chain == (on_chain is not None)
