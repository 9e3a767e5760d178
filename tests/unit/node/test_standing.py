"""A node whose marketplace gives it no new leases tells its owner so: in the log, in `torg-node status`, over restarts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from torg_node.journal import Journal
from torg_node.standing import Standing, kept_suspensions, standing_lines
from torg_node.status import NodeStatus
from torg_protocol.suspensions import NodeSuspended, Suspension

SMOKE = Suspension(by="operator", because="smoke was seen", since_ms=1_800_000_000_000)
LIES = Suspension(by="proof", because="wrong digests", since_ms=1_800_000_060_000)


def status(*suspensions: Suspension) -> NodeStatus:
    return NodeStatus("node1", "https://market", 7, False, 0, 0, 0, 1, (), 0, (), suspensions=suspensions)


def test_what_was_told_is_logged_once_and_known_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    journal = Journal(tmp_path / "journal.sqlite")
    standing = Standing(journal)
    assert standing.suspensions == ()
    for _ in range(3):  # the marketplace repeats itself
        standing.take(NodeSuspended(suspensions=(SMOKE,)))
    (said,) = [record for record in caplog.records if "suspended" in record.message]
    assert said.levelname == "WARNING"
    for word in ("smoke was seen", "2027-01-15 08:00:00 UTC", "by the operator", "no new leases"):
        assert word in said.message
    journal.close()

    journal = Journal(tmp_path / "journal.sqlite")
    again = Standing(journal)
    assert again.suspensions == kept_suspensions(journal) == (SMOKE,)
    again.take(NodeSuspended(suspensions=()))
    assert "not suspended any more" in caplog.records[-1].message
    assert kept_suspensions(journal) == ()
    journal.close()


def test_the_status_says_why_since_when_and_what_to_do() -> None:
    text = status(SMOKE, LIES).as_text(6)
    for word in ("smoke was seen", "2027-01-15 08:00:00 UTC", "ask the operator", "wrong digests", "torg-node doctor"):
        assert word in text
    assert status(SMOKE).as_json()["suspensions"] == [SMOKE.wire()]
    assert "suspended" not in status().as_text(6)


def test_a_cause_that_this_release_does_not_know_is_shown_as_it_is() -> None:
    lines = standing_lines((Suspension(by="court", because="an order", since_ms=0),))
    assert "by court: an order" in lines[0]
