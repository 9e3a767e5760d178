"""The tables of a simulated market, read with plain SQL, and what its end reasons mean, written down a second time: a rule that is wrong must
not agree with itself."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LIVE = {"granted", "preparing", "running", "stopping"}
OPEN = {"queued", "leased", "verifying"}
EXCLUDING = {"start_failed", "host_protection", "node_lost", "verification_rejected"}
PAUSING = {"declined", "drained", "exposure_limit"}
PAUSE_MS, LONGEST_PAUSE_MS = 60_000, 960_000  # the first; each further one is twice as long
DECLINED_FOR_GOOD = "kind_denied"  # of what simulated nodes say
UNBILLED = {"declined", "start_failed", "image_not_found", "input_invalid", "queue_deadline", "verification_rejected"}
UP_TO_CHECKPOINT = {"drained", "preempted", "host_protection", "exposure_limit", "node_lost", "stale"}
OWN_FAILURES = {"failed_exit", "oom", "disk_full", "output_missing", "max_duration", "budget"}  # votes of a quorum
NOT_COUNTED = {"declined", "completed", "preempted", "max_duration"}
MS_PER_HOUR = 3_600_000
SPOT_PROTECTED_MS = 5_000  # of the simulated market
SKEW_MS = 2_000  # between a node's clock and what the marketplace saw


@dataclass
class Tables:
    """One look at the database."""

    jobs: dict[str, sqlite3.Row]
    leases: list[sqlite3.Row]
    database: sqlite3.Connection

    def all(self, query: str, *arguments: Any) -> list[sqlite3.Row]:
        return self.database.execute(query, arguments).fetchall()

    def sums(self, query: str) -> dict[str, int]:
        """A query for a name and an amount."""
        return {str(name): int(amount) for name, amount in self.all(query)}

    @cached_property
    def leases_of_job(self) -> dict[str, list[sqlite3.Row]]:
        found: dict[str, list[sqlite3.Row]] = {}
        for lease in self.leases:
            found.setdefault(lease["job_id"], []).append(lease)
        return found


def attempts_of(leases: list[sqlite3.Row]) -> dict[int, list[sqlite3.Row]]:
    """A job's leases, by attempt and rank."""
    found: dict[int, list[sqlite3.Row]] = defaultdict(list)
    for lease in leases:
        found[lease["attempt"]].append(lease)
    return found


def look(database: sqlite3.Connection) -> Tables:
    database.row_factory = sqlite3.Row
    try:
        jobs = {row["job_id"]: row for row in database.execute("SELECT * FROM jobs")}
        leases = database.execute("SELECT * FROM leases ORDER BY job_id, attempt, rank").fetchall()
    finally:
        database.row_factory = None
    return Tables(jobs, leases, database)
