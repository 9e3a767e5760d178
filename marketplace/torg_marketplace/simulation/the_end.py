"""What must hold in the end, when everybody was well again for a while: nothing is left to do, and who worked is paid."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from torg_marketplace.simulation.agreement import still_held
from torg_marketplace.simulation.cases import given_back
from torg_marketplace.simulation.promises import Parties
from torg_marketplace.simulation.tables import OPEN, UNBILLED, UP_TO_CHECKPOINT, Tables, attempts_of
from torg_marketplace.simulation.work import Character, Truth


def unpaid_work(parties: Parties, tables: Tables) -> Iterator[str]:
    """In the end: an honest node got what the table of end reasons promises it."""
    for lease in tables.leases:
        node, job = parties.node(lease["node_id"]), tables.jobs[lease["job_id"]]
        truth = node.truth.get(lease["lease_id"])
        known = truth is not None and truth.seen_started_ms is not None and truth.ended_ms is not None
        if truth is None or not known or node.character is not Character.HONEST or truth.lied:
            continue
        if job["cancel_requested_at_ms"] is not None or lease["state"] in {"rejected", "inconclusive", "revoked"}:
            continue
        due_ms = _due_ms(lease, truth) if lease["size"] == 1 else _due_in_gang_ms(tables, lease, truth)
        is_verified = json.loads(job["spec"])["verify"]["policy"] != "none"
        if lease["reason"] in UP_TO_CHECKPOINT and is_verified and job["state"] != "succeeded":
            continue  # a checkpoint that led nowhere
        if '"inconclusive"' in (lease["verdict"] or ""):
            continue  # handed over, and nobody could tell
        if lease["billed_ms"] < due_ms:
            yield f"{lease['lease_id']} ({lease['reason']}) worked {due_ms} ms and is paid for {lease['billed_ms']} ms"


def _due_in_gang_ms(tables: Tables, lease: sqlite3.Row, truth: Truth) -> int:
    """When all that stayed have done their part: from when all of them ran, but for what was lost with those that left. Else it depends on
    the others."""
    others = attempts_of(tables.leases_of_job[lease["job_id"]])[lease["attempt"]]
    if any(other["reason"] != "completed" for other in others if other["left_at_ms"] is None):
        return 0
    if lease["left_at_ms"] is not None:
        return 0
    waited_ms = int(lease["useful_from_ms"]) - int(lease["started_at_ms"])
    lost_ms = sum(lost_ms for left_at_ms, lost_ms in json.loads(lease["losses"]) if left_at_ms < lease["exited_at_ms"])
    return max(0, _due_ms(lease, truth) - waited_ms - int(lost_ms))


def _due_ms(lease: sqlite3.Row, truth: Truth) -> int:
    if lease["reason"] in UNBILLED or truth.ended_ms is None or truth.seen_started_ms is None:
        return 0
    rate = lease["price_per_gpu_hour"] * lease["billable_gpus"]
    worked_ms = max(0, truth.ended_ms - truth.seen_started_ms)
    if lease["reason"] in UP_TO_CHECKPOINT:
        worked_ms = min(worked_ms, truth.checkpoint_ms)
    affordable_ms = worked_ms if rate == 0 else lease["max_amount"] * 3_600_000 // rate
    return int(min(worked_ms, lease["max_duration_ms"], affordable_ms))


def unfinished(parties: Parties, tables: Tables) -> Iterator[str]:
    """In the end, when everybody was well again for a while."""
    for job in tables.jobs.values():
        if job["state"] in OPEN or job["closed_at_ms"] is None:
            yield f"{job['job_id']} is {job['state']} for ever ({job['waiting_for']})"
    for lease in tables.leases:
        if lease["decided_at_ms"] is None:
            yield f"{lease['lease_id']} is {lease['state']} and never decided"
    for payout_id, state in tables.all(
        "SELECT payout_id, state FROM payouts WHERE state NOT IN ('finalized', 'refunded')"
    ):
        yield f"{payout_id} is {state} for ever"
    for (lease_id,) in tables.all("SELECT lease_id FROM commitments WHERE NOT released"):
        yield f"the range of {lease_id} is never released"
    yield from still_held(parties)
    returned = given_back(tables)
    billed = sum(lease["amount"] for lease in tables.leases) - sum(returned.values())
    if sum(parties.world.chain.paid.values()) != billed:
        yield f"{billed} was billed, {sum(parties.world.chain.paid.values())} was paid"
    yield from _countersigned(parties, tables)
    for client in parties.clients:
        cost = sum(lease["amount"] for lease in tables.leases if lease["job_id"] in client.wanted)
        cost -= returned.get(client.vault, 0)
        left = parties.world.chain.finalized[client.vault].balance
        if client.deposited - cost != left:
            yield f"{client.account} deposited {client.deposited}, is billed {cost}, and has {left} left"
        for job_id, most in client.wanted.items():
            if sum(lease["amount"] for lease in tables.leases if lease["job_id"] == job_id) > most:
                yield f"{job_id} costs more than its client was told"


def _countersigned(parties: Parties, tables: Tables) -> Iterator[str]:
    for lease_id, signed in tables.all("SELECT lease_id, json_extract(signed, '$.node_signature') FROM receipts"):
        if signed is None and any(lease_id in node.signed for node in parties.nodes):
            yield f"{lease_id}: its node has countersigned the receipt, and that is not kept"
