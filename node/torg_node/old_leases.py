"""What the journal forgets of leases that are over: words that were said and taken, checkpoints, tasks. What was earned stays, with the grant, the
usage records and the receipt that show it; of grants that came to nothing nothing stays."""

from __future__ import annotations

import sqlite3

from torg_node.durable import exclusively

_AT_ONCE = 2_000  # leases: the event loop waits
_ABOUT_LEASES = ("events", "checkpoints", "tasks", "task_runs", "task_results")
# Over: nothing of it is on this host, nobody waits for its receipt, and the marketplace has taken all that was said about it.
_OVER = """
    leases.done = 1 AND granted_at_ms < ? AND (receipt_json IS NOT NULL OR state IN ('released', 'revoked'))
    AND NOT EXISTS (SELECT 1 FROM events AS untold WHERE untold.lease_id = leases.lease_id AND acknowledged = 0)"""
_UNPAID = """
    COALESCE(receipt_json, '') = ''
    AND NOT EXISTS (SELECT 1 FROM usage WHERE usage.lease_id = leases.lease_id)
    AND NOT EXISTS (SELECT 1 FROM earnings WHERE earnings.lease_id = leases.lease_id)
    AND NOT EXISTS (SELECT 1 FROM refunds WHERE refunds.lease_id = leases.lease_id)"""


def forget_old_leases(database: sqlite3.Connection, before_ms: int) -> int:
    """Of leases that were granted before then; of how many. The rest of very many another time."""
    talked_of = "SELECT DISTINCT lease_id FROM events JOIN leases USING (lease_id)"  # the rest is not even looked at
    query = f"{talked_of} WHERE {_OVER} LIMIT {_AT_ONCE}"
    with exclusively(database):
        leases = list(database.execute(query, (before_ms,)))
        for table in _ABOUT_LEASES:
            database.executemany(f"DELETE FROM {table} WHERE lease_id = ?", leases)  # noqa: S608 - constants
        database.executemany(f"DELETE FROM leases WHERE lease_id = ? AND {_UNPAID}", leases)  # noqa: S608 - constants
    return len(leases)
