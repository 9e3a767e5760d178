"""What a node has earned, kept as sums: the same as adding up the documents, also for a journal of the time before."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from solders.keypair import Keypair

from tests.support.receipts import make_receipt
from torg_node.journal import Journal
from torg_node.money import FEE_FACT, debts, exposure
from torg_protocol.ids import LeaseId
from torg_protocol.usage import SignedReceipt

VAULT, FEE = "the vault", 200
FROM_DOCUMENTS = """
    SELECT vault, SUM(amount - amount * ? / 10000) FROM (
        SELECT json_extract(grant_json, '$.grant.commitment.vault') AS vault, json_extract(signed_json, '$.record.amount') AS amount
        FROM leases JOIN usage USING (lease_id) WHERE receipt_json IS NULL
        UNION ALL
        SELECT json_extract(grant_json, '$.grant.commitment.vault'), json_extract(item.value, '$.record.amount')
        FROM leases, json_each(receipt_json, '$.usage') AS item WHERE receipt_json <> '')
    GROUP BY vault"""


def _receipt(number: int) -> SignedReceipt:
    """Of `lease_NUMBER`."""
    return make_receipt(Keypair(), Keypair(), number, vault=VAULT)


def _granted(path: Path, lease: str) -> None:
    """Of a grant, only what counts here."""
    with sqlite3.connect(path) as db:
        grant = json.dumps({"grant": {"commitment": {"vault": VAULT}}})
        db.execute(
            "INSERT INTO leases (lease_id, grant_json, state, granted_at_ms) VALUES (?, ?, 'running', 0)",
            (lease, grant),
        )


def _by_documents(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as db:
        return {str(vault): int(amount) for vault, amount in db.execute(FROM_DOCUMENTS, (FEE,))}


def test_sums_follow_usage_receipts_and_what_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    paid, running, lost = (_receipt(number) for number in (1, 2, 3))
    for receipt in (paid, running, lost):
        _granted(path, receipt.receipt.lease_id)
        for usage in receipt.usage:
            journal.add_usage(usage)
            journal.add_usage(usage)  # said twice
            assert journal.earned(FEE) == _by_documents(path)
    assert journal.undecided_amount() == sum(item.receipt.amount for item in (paid, running, lost))

    journal.set_receipt(LeaseId("lease_1"), paid)
    journal.add_usage(paid.usage[0])  # late: the receipt decides
    assert journal.earned(FEE) == _by_documents(path)
    journal.forget_undecided(LeaseId("lease_3"))
    assert journal.earned(FEE) == _by_documents(path) != {}
    assert journal.undecided_amount() == running.receipt.amount == journal.countersigned(LeaseId("lease_2"))
    assert journal.earned(0)[VAULT] == paid.receipt.amount + running.receipt.amount
    journal.add_usage(_receipt(4).usage[0])
    assert journal.earned(FEE) == _by_documents(path)
    journal.close()


def test_what_is_owed_is_what_was_earned_and_not_captured(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    receipt = _receipt(1)
    _granted(tmp_path / "journal.sqlite", "lease_1")
    for usage in receipt.usage:
        journal.add_usage(usage)
    journal.set_fact(FEE_FACT, str(FEE))
    (before,) = debts(journal)
    journal.add_capture("a signature", VAULT, 10, 3)
    journal.add_capture("a signature", VAULT, 10, 3)  # seen twice
    (after,) = debts(journal)
    assert (after.earned, after.captured) == (before.earned, 3)
    assert exposure(journal) == after.owed == before.owed - 3
    journal.add_capture("another", VAULT, 20, 10**9)  # of another node with the same address
    assert exposure(journal) == 0
    journal.close()


def test_another_process_is_noticed_and_an_old_journal_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal, other = Journal(path), Journal(path)
    receipt = _receipt(1)
    _granted(path, "lease_1")
    assert journal.earned(FEE) == {}
    for usage in receipt.usage:
        other.add_usage(usage)
    assert journal.earned(FEE) == _by_documents(path) != {}
    journal.close()
    other.close()

    with sqlite3.connect(path) as db:  # as it was before sums were kept
        db.execute("DROP TABLE earnings")
        db.execute("DELETE FROM facts WHERE name = 'earnings_filled'")
    filled = Journal(path)
    assert filled.earned(FEE) == _by_documents(path) != {}
    filled.close()
