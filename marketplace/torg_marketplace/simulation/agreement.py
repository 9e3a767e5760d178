"""What marketplace and nodes know of a lease is the same: who was told what, when something happened, how it ended, for how long it ran."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torg_marketplace.simulation.tables import LIVE, Tables
from torg_marketplace.simulation.work import Character
from torg_protocol.ids import LeaseId
from torg_protocol.messages import Granted, Stop, ToNode
from torg_protocol.states import LeaseState

if TYPE_CHECKING:
    from torg_marketplace.simulation.promises import Parties

_OF_LEASES: tuple[str, ...] = (
    *("granted_at_ms", "started_at_ms", "useful_from_ms", "exited_at_ms", "stop_requested_at_ms", "reported_at_ms"),
    *("left_at_ms", "ended_at_ms", "decided_at_ms"),
)
_OF_JOBS: tuple[str, ...] = ("created_at_ms", "cancel_requested_at_ms", "ended_at_ms", "closed_at_ms")
_GOES_ON = {LeaseState.GRANTED, LeaseState.PREPARING, LeaseState.RUNNING}


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
    """A message may get lost; a node that is heard of on gets it again: at once, whether it comes back or just says that it is there."""
    for lease in tables.leases:
        node, lease_id = parties.node(lease["node_id"]), LeaseId(lease["lease_id"])
        held = node.held.get(lease_id)
        wanted: type[ToNode]
        match lease["state"]:
            case "granted" if lease_id not in node.truth:
                since_ms, wanted = lease["granted_at_ms"], Granted
            case "stopping" if held is not None and held.stop is None and held.state in _GOES_ON:
                since_ms, wanted = lease["stop_requested_at_ms"], Stop
            case _:
                continue
        was_heard = node.online and (node.connected_ms > since_ms or node.rounds_since(since_ms) > 0)
        if was_heard and (wanted, lease_id) not in map(_named, parties.world.links.said(node.id)):
            yield f"{lease_id} is {lease['state']}, and {node.id}, which was heard of since, is not told"


def _named(message: ToNode) -> tuple[type[ToNode], LeaseId | None]:
    if isinstance(message, Granted):
        return Granted, message.signed.grant.lease_id
    return type(message), message.lease_id if isinstance(message, Stop) else None


def asked_to_end(parties: Parties, tables: Tables) -> Iterator[str]:
    """Whose client asked for its end, and was told yes, ends: it is noted when that was, and no node gets it any more."""
    for client in parties.clients:
        for job_id, asked_ms in client.asked_to_end_ms.items():
            job = tables.jobs[job_id]
            if job["cancel_requested_at_ms"] != asked_ms:
                yield f"{job_id} was cancelled at {asked_ms}, and the marketplace says {job['cancel_requested_at_ms']}"
            for lease in tables.leases_of_job.get(job_id, []):
                if lease["granted_at_ms"] > asked_ms:
                    yield f"{lease['lease_id']} was granted, and its client had asked for the end of {job_id}"


def unheard(parties: Parties, tables: Tables) -> Iterator[str]:
    """What the marketplace took of a lease it keeps: its exit code at once, and of its checkpoints the newest, which is its job's while it lives."""
    for lease in tables.leases:
        truth = parties.node(lease["node_id"]).truth.get(LeaseId(lease["lease_id"]))
        if truth is None:
            continue
        if truth.exit_code != lease["exit_code"]:
            yield f"{lease['lease_id']} ended with code {truth.exit_code}, and the marketplace says {lease['exit_code']}"
        if truth.checkpoint is None:
            continue
        of_job = [tables.jobs[lease["job_id"]]["checkpoint"]] if lease["state"] in LIVE else []
        for checkpoint in [lease["checkpoint"], *of_job]:
            if f'"{truth.checkpoint}"' not in (checkpoint or ""):
                yield f"{lease['lease_id']} stored {truth.checkpoint} last, and the marketplace keeps {checkpoint}"


def decided(parties: Parties, tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    """Of a lease that was just decided."""
    name, job = lease["lease_id"], tables.jobs[lease["job_id"]]
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
