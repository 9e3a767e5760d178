"""What the journal takes for told, and which of two orders it keeps."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from solders.keypair import Keypair

from tests.support.receipts import make_receipt
from torg_node.journal import Journal
from torg_protocol.caps import SignedCap, SignedOrder
from torg_protocol.ids import Digest, LeaseId, VaultAddress
from torg_protocol.messages import Accepted, Started
from torg_protocol.tasks import TaskState

LEASE = LeaseId("lease_1")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


def test_what_is_acknowledged_is_not_told_again_and_what_comes_after_is(journal: Journal) -> None:
    for at_ms in (1, 2, 3):
        journal.add_event(LEASE, 7, at_ms, Accepted())
    journal.acknowledge(LEASE, 2)
    assert [event.sequence for event in journal.unacknowledged()] == [3]
    journal.acknowledge(LEASE, 1)  # an answer that was long under way
    assert [event.sequence for event in journal.unacknowledged()] == [3]
    journal.acknowledge(LEASE, 3)
    assert journal.unacknowledged() == []


def test_what_is_asked_each_few_seconds_reads_nothing_of_leases_that_are_over(journal: Journal) -> None:
    """After months there are a hundred thousand of those."""
    asked: list[str] = []
    journal._db.set_trace_callback(asked.append)
    journal.unacknowledged()
    journal.open_leases()
    journal.undecided_leases()
    journal._db.set_trace_callback(None)
    plans = [journal._db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall() for query in asked]
    indexes = [row[3].rpartition(" INDEX ")[2] for (row,) in plans]
    assert indexes == ["events_untold", "leases_undecided", "leases_undecided"]


@pytest.mark.parametrize("gpus", [(), ("GPU-1", "GPU-2")])
def test_it_knows_the_gpus_that_a_container_was_started_with(journal: Journal, gpus: tuple[str, ...]) -> None:
    journal.add_event(LEASE, 7, 1, Accepted())
    assert journal.started_on(LEASE) is None
    body = Started(started_at_ms=1, image_digest="sha256:0", executor="docker", isolation="container", gpu_uuids=gpus)
    journal.add_event(LEASE, 7, 2, body)
    assert journal.started_on(LEASE) == gpus


def order(expected_settled: int, root: str = "0") -> SignedOrder:
    vault = VaultAddress("vault")
    return SignedOrder(
        vault=vault,
        expected_settled=expected_settled,
        payees=(),
        root=Digest("sha256:" + root * 64),
        cap=SignedCap(vault=vault, cap=1, valid_until_s=1, signer="", signature=""),
        signer="",
        signature="",
    )


def test_an_older_order_does_not_take_the_place_of_a_newer_one(journal: Journal) -> None:
    journal.keep_order(order(100), now_ms=1)
    journal.keep_order(order(40), now_ms=2)
    assert journal.orders() == [(order(100), 1)]
    journal.keep_order(order(100, "1"), now_ms=3)  # for the same total: made anew
    assert journal.orders() == [(order(100, "1"), 3)]
    journal.keep_order(order(101), now_ms=4)
    assert journal.orders() == [(order(101), 4)]


def test_words_about_leases_go_after_a_while_and_what_was_earned_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    receipt = make_receipt(Keypair(), Keypair(), 0, vault="vault")
    paid, runs, untold, declined, waits, taken_away, new = (LeaseId(f"lease_{number}") for number in range(7))
    every = (paid, runs, untold, declined, waits, taken_away, new)
    with sqlite3.connect(path) as db:
        for lease in every:
            state = {runs: "running", declined: "released", taken_away: "revoked"}.get(lease, "reported")
            row = (lease, json.dumps({"grant": {"commitment": {"vault": "vault"}}}), state, lease != runs, lease == new)
            db.execute(
                "INSERT INTO leases (lease_id, grant_json, state, done, granted_at_ms) VALUES (?, ?, ?, ?, ?)", row
            )
    for lease in every:
        journal.add_event(lease, 7, 1, Accepted())
        journal.add_checkpoint(lease, "step-1")
        journal.tasks.set_state(lease, "prepare", TaskState.SUCCEEDED)
        if lease != untold:
            journal.acknowledge(lease, 1)
    for lease in (paid, untold, new):
        for record in receipt.usage:
            journal.add_usage(
                record.model_copy(update={"record": record.record.model_copy(update={"lease_id": lease})})
            )
        journal.set_receipt(lease, receipt)
    journal.forget_undecided(taken_away)
    earned = journal.earned(0)

    assert journal.forget_old(0) == 0
    assert journal.forget_old(1) == 3
    assert journal.forget_old(1) == 0

    assert {lease for lease in every if journal.has_said(lease, ["accepted"])} == {runs, untold, waits, new}
    assert {lease for lease in every if journal.checkpoints(lease)} == {runs, untold, waits, new}
    assert {lease for lease in every if journal.tasks.states(lease)} == {runs, untold, waits, new}
    with sqlite3.connect(path) as db:
        kept = {lease for (lease,) in db.execute("SELECT lease_id FROM leases")}
    assert kept == set(every) - {declined, taken_away}, "grants that came to nothing"
    assert journal.usage(paid)
    assert journal.earned(0) == earned != {}
    assert len(journal.usage_with_receipts()) == 3 * len(receipt.usage)
    journal.close()
