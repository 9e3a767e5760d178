"""What marketplace and nodes know of a lease is the same: who was told what, when something happened, how it ended, for how long it ran."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torg_marketplace.simulation.tables import Tables
from torg_marketplace.simulation.work import Character
from torg_protocol.ids import LeaseId
from torg_protocol.states import LeaseState

if TYPE_CHECKING:
    from torg_marketplace.simulation.promises import Parties

_OF_LEASES: tuple[str, ...] = (
    *("granted_at_ms", "started_at_ms", "useful_from_ms", "exited_at_ms", "stop_requested_at_ms", "reported_at_ms"),
    *("left_at_ms", "ended_at_ms", "decided_at_ms"),
)
_OF_JOBS: tuple[str, ...] = ("created_at_ms", "cancel_requested_at_ms", "ended_at_ms", "closed_at_ms")
_GOES_ON = {LeaseState.PREPARING, LeaseState.RUNNING}
_ROUNDS = 3  # of a node, in which it hears and is heard


def moments(parties: Parties, tables: Tables) -> Iterator[str]:
    """When something happened is noted once: bills and limits count from there."""
    subjects = [(lease["lease_id"], lease, _OF_LEASES) for lease in tables.leases]
    subjects += [(job_id, job, _OF_JOBS) for job_id, job in tables.jobs.items()]
    for name, row, columns in subjects:
        for column in columns:
            at_ms = row[column]
            if at_ms is not None and at_ms != parties.moments.setdefault((name, column), at_ms):
                yield f"{name}: {column} was {parties.moments[name, column]}, and is {at_ms}"


def untold(parties: Parties, tables: Tables) -> Iterator[str]:
    """A message may get lost; a node that goes on to be heard gets it again."""
    for lease in tables.leases:
        node, lease_id = parties.node(lease["node_id"]), LeaseId(lease["lease_id"])
        held = node.held.get(lease_id)
        match lease["state"]:
            case "granted" if lease_id not in node.truth:
                rounds = node.rounds_since(lease["granted_at_ms"])
            case "stopping" if held is not None and held.stop is None and held.state in _GOES_ON:
                rounds = node.rounds_since(lease["stop_requested_at_ms"])
            case _:
                continue
        if rounds >= _ROUNDS:
            yield f"{lease_id} is {lease['state']} since {rounds} rounds of {node.id}, which was never told"


def decided(parties: Parties, tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    """Of a lease that was just decided."""
    name, job = lease["lease_id"], tables.jobs[lease["job_id"]]
    query = (
        "SELECT json_extract(event, '$.body.exit_code') FROM lease_events WHERE lease_id = ? AND refusal IS NULL "
        "AND json_extract(event, '$.body.kind') = 'exited'"
    )
    codes = [code for (code,) in tables.all(query, name)]
    if codes and lease["exit_code"] != codes[-1]:
        yield f"{name} ended with code {codes[-1]}, and its receipt says {lease['exit_code']}"
    node, policy = parties.node(lease["node_id"]), parties.world.market.policy
    truth = node.truth.get(name)
    is_known = lease["exited_at_ms"] is not None and node.character is not Character.LIAR
    if is_known and truth is not None and truth.started_ms is not None and truth.ended_ms is not None:
        ran_ms = truth.ended_ms - truth.started_ms
        told_ms = lease["billed_ms"] + lease["unbilled_ms"]
        if told_ms > ran_ms + policy.usage_skew_ms:
            yield f"{name} ran {ran_ms} ms, of which {lease['billed_ms']} are billed and {lease['unbilled_ms']} not"
    asked_ms, is_late = (
        job["cancel_requested_at_ms"],
        (job["ended_at_ms"] or lease["ended_at_ms"]) < lease["ended_at_ms"],
    )
    if job["state"] == "cancelled" and is_late and lease["started_at_ms"] is not None:
        useful_ms = asked_ms + policy.stop_grace_ms + policy.usage_skew_ms - lease["started_at_ms"]
        if lease["billed_ms"] > max(0, useful_ms):
            yield f"{name} is billed for {lease['billed_ms']} ms, and was of use for {useful_ms} before it was cancelled"


def still_held(parties: Parties) -> Iterator[str]:
    """In the end: who has handed over everything has its receipt, and has forgotten the lease."""
    for node in parties.nodes:
        yield from (f"{node.id} still holds {lease_id}" for lease_id in node.held)
