"""What must hold of jobs, leases and nodes after every step, whatever happened. Each function returns sentences that name what is broken."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from torg_marketplace.simulation.books import broken_books
from torg_marketplace.simulation.quorums import quorums
from torg_marketplace.simulation.tables import (
    DECLINED_FOR_GOOD,
    EXCLUDING,
    LIVE,
    LONGEST_PAUSE_MS,
    MS_PER_HOUR,
    NOT_COUNTED,
    OPEN,
    OWN_FAILURES,
    PAUSE_MS,
    PAUSING,
    SKEW_MS,
    SPOT_PROTECTED_MS,
    UNBILLED,
    UP_TO_CHECKPOINT,
    Tables,
    attempts_of,
    look,
)
from torg_marketplace.simulation.volumes import broken_volumes
from torg_protocol.quantities import parse_duration_ms


def broken(database: sqlite3.Connection, now_ms: int) -> list[str]:
    tables = look(database)
    found = [
        *_leases(tables),
        *_capacity(tables),
        *_attempts(tables),
        *quorums(tables),
        *_places(tables),
        *_preemptions(tables),
        *_times(tables, now_ms),
        *broken_volumes(tables),
    ]
    return [*found, *broken_books(tables), *_events(tables)]


def _leases(tables: Tables) -> Iterator[str]:
    for job_id, leases in tables.leases_of_job.items():
        job = tables.jobs[job_id]
        live = [lease for lease in leases if lease["state"] in LIVE]
        if len({lease["attempt"] for lease in live}) > 1:
            yield f"{job_id} was granted twice: {len(live)} leases live"
        yield from _gangs(leases, _least_size(tables, job_id))
        if live and job["state"] != "leased" and job["cancel_requested_at_ms"] is None:
            yield f"{live[0]['lease_id']} lives without an owner: its job is {job['state']}"
        fences = [lease["fence"] for lease in leases if lease["rank"] == 0]
        if fences != sorted(set(fences)) or (live and live[-1]["fence"] != job["generation"]):
            yield f"{job_id}: fences {fences}, generation {job['generation']}"
        if [lease["attempt"] for lease in leases if lease["rank"] == 0] != list(range(1, len(fences) + 1)):
            yield f"{job_id}: attempts are not numbered in order"
    for job in tables.jobs.values():
        live_count = sum(lease["state"] in LIVE for lease in tables.leases_of_job.get(job["job_id"], []))
        if job["state"] == "leased" and not live_count:
            yield f"{job['job_id']} is leased to nobody"
        if job["closed_at_ms"] is not None and (job["state"] in OPEN or live_count):
            yield f"{job['job_id']} is closed while it is {job['state']}"
        if (job["state"] not in OPEN) != (job["ended_at_ms"] is not None):
            yield f"{job['job_id']} is {job['state']}, ended at {job['ended_at_ms']}"
        if job["state"] not in OPEN and not live_count and job["closed_at_ms"] is None:
            yield f"{job['job_id']} has ended and keeps its hold"
        if job["state"] == "verifying" and not _waits_for_verdict(tables, job["job_id"]):
            yield f"{job['job_id']} waits for a verdict that nobody will give"


def _least_size(tables: Tables, job_id: str) -> int | None:
    least: int | None = (json.loads(tables.jobs[job_id]["spec"]).get("gang") or {}).get("min_size")
    return least


def _gangs(leases: list[sqlite3.Row], least_size: int | None) -> Iterator[str]:
    """All of a gang were granted at once, on different nodes, and when one has gone, nobody just goes on, unless it may."""
    for members in attempts_of(leases).values():
        first = members[0]
        places = [(lease["rank"], lease["fence"], lease["granted_at_ms"], lease["size"]) for lease in members]
        whole = [(rank, first["fence"], first["granted_at_ms"], len(members)) for rank in range(len(members))]
        if places != whole or len({lease["node_id"] for lease in members}) != len(members):
            yield f"half a gang was granted with {first['lease_id']}: {places}"
        left = [lease for lease in members if lease["left_at_ms"] is not None]
        if left and (least_size is None or left[0]["rank"] == 0 or len(members) - len(left) < least_size):
            yield f"{left[0]['lease_id']} and {len(left) - 1} more left, of {len(members)}; {least_size} must stay"
        ended = [lease for lease in members if lease["state"] not in LIVE and lease["reason"] != "completed"]
        gone = [lease for lease in ended if lease not in left]
        alone = [lease for lease in members if lease["state"] in LIVE and lease["state"] != "stopping"]
        if gone and alone:
            yield f"{alone[0]['lease_id']} goes on without {gone[0]['lease_id']}, which is {gone[0]['state']}"
        for lease in members:
            if lease["exited_at_ms"] is not None and lease["billed_ms"]:
                losses = json.loads(lease["losses"])
                lost_ms = sum(lost_ms for left_at_ms, lost_ms in losses if left_at_ms < lease["exited_at_ms"])
                if lease["billed_ms"] + lost_ms > lease["exited_at_ms"] - lease["started_at_ms"] + SKEW_MS:
                    yield f"{lease['lease_id']} is billed for {lost_ms} ms that were lost with another member"
        early = [lease for lease in members if lease["billed_ms"] and lease["useful_from_ms"] is None]
        if early:
            yield f"{early[0]['lease_id']} is billed before its whole gang has started"


def _waits_for_verdict(tables: Tables, job_id: str) -> bool:
    """Its result, or what a lease has handed over that was over before it."""
    waits = [
        lease for lease in tables.leases_of_job[job_id] if lease["verify_at_ms"] and lease["decided_at_ms"] is None
    ]
    return any(lease["state"] in {"reported", "released", "lost", "revoked"} for lease in waits)


def _capacity(tables: Tables) -> Iterator[str]:
    units: Counter[str] = Counter()
    on_gpu: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    live = {lease["lease_id"]: lease for lease in tables.leases if lease["state"] in LIVE}
    query = (
        "SELECT a.lease_id, a.node_id, a.unit, json_extract(n.offer, '$.slots'), "
        "json_array_length(n.offer, '$.inventory.gpus') FROM allocations a JOIN nodes n USING (node_id)"
    )
    for lease_id, node_id, unit, slots, gpus in tables.all(query):
        kind, number = unit.split(":")
        units[lease_id] += 1
        if lease_id not in live:
            yield f"{unit} of {node_id} is kept by {lease_id}, which has ended"
        elif live[lease_id]["node_id"] != node_id:
            yield f"{lease_id} has {unit} of another node"
        gpu, _, place = number.partition("/")
        if int(gpu) >= (gpus if kind == "gpu" else slots):
            yield f"{node_id} has no {unit}"
        if kind == "gpu" and lease_id in live:
            on_gpu[node_id, gpu].append((lease_id, bool(place)))
    for lease_id, lease in live.items():
        if units[lease_id] != lease["billable_gpus"]:
            yield f"{lease_id} lives on {units[lease_id]} units and pays for {lease['billable_gpus']}"
    for (node_id, gpu), users in on_gpu.items():
        yield from _shared(tables, f"gpu:{gpu} of {node_id}", users)
    used = (
        "SELECT node_id, SUM(cpu_millis), SUM(memory_bytes), SUM(disk_bytes) FROM leases "
        "WHERE state IN ('granted', 'preparing', 'running', 'stopping') GROUP BY node_id"
    )
    inventory = (
        "SELECT json_extract(offer, '$.inventory.cpu_millis'), json_extract(offer, '$.inventory.memory_bytes'), "
        "json_extract(offer, '$.inventory.disk_bytes') FROM nodes WHERE node_id = ?"
    )
    for node_id, *sums in tables.all(used):
        (most,) = tables.all(inventory, node_id)
        if any(have > there for have, there in zip(sums, most, strict=True)):
            yield f"{node_id} is over-used: {sums} of {list(most)}"


def _shared(tables: Tables, name: str, users: list[tuple[str, bool]]) -> Iterator[str]:
    """`users`: leases on one GPU, and whether as a share of it."""
    query = "SELECT client, json_extract(spec, '$.resources.gpu_fraction') FROM jobs JOIN leases USING (job_id) WHERE lease_id = ?"
    asked = {lease_id: tables.all(query, lease_id)[0] for lease_id, _ in users}
    milli = {lease_id: round(1000 * float(fraction or 1)) for lease_id, (_, fraction) in asked.items()}
    if sum(milli.values()) > 1000:
        yield f"{name} is over-used: {milli}"
    if len({client for client, _ in asked.values()}) > 1:
        yield f"{name} is shared by strangers: {sorted(asked)}"
    if any(is_share != (milli[lease_id] < 1000) for lease_id, is_share in users):
        yield f"{name} is held as something else than was asked for: {users}"


def _attempts(tables: Tables) -> Iterator[str]:
    """Who may try again, and at what price."""
    for job_id, leases in tables.leases_of_job.items():
        job, limits = tables.jobs[job_id], _limits(tables, job_id)
        spent = counted = own = billed_ms = 0
        for attempt, members in attempts_of(leases).items():
            if any(lease["price_per_gpu_hour"] > job["price_ceiling"] for lease in members):
                yield f"{members[0]['lease_id']} costs more per hour than promised"
            most = sum(lease["max_amount"] for lease in members)
            if most > job["max_amount"] - spent:
                yield f"{members[0]['lease_id']} may cost {most} of {job['max_amount'] - spent} that are left"
            left_ms = limits.max_duration_ms - (billed_ms if limits.replicas == 1 else 0)
            if members[0]["max_duration_ms"] > left_ms:
                yield f"{members[0]['lease_id']} may last {members[0]['max_duration_ms']} ms of {left_ms} ms that are left"
            if counted - own >= limits.max_attempts:
                yield f"{job_id}: attempt {attempt} is beyond its {limits.max_attempts}"
            if own > limits.on_failure:
                yield f"{job_id} was tried again after {own} failures of its own"
            spent += sum(lease["amount"] for lease in members)
            billed_ms += max(lease["billed_ms"] for lease in members)
            reason = _why_it_ended(members)
            is_vote = limits.replicas > 1 and reason in OWN_FAILURES
            own += reason == "failed_exit" and not is_vote
            beyond = [lease for lease in members if _is_beyond_checkpoint(lease, members, job)]
            if len(members) > 1 and beyond and reason in EXCLUDING | PAUSING:
                yield f"{beyond[0]['lease_id']} is billed beyond the checkpoint of a gang that ended by {reason}"
            # A replica is outvoted after the next ones have run.
            outvoted = limits.replicas > 1 and reason == "verification_rejected"
            counted += reason is not None and reason not in NOT_COUNTED and not outvoted and not is_vote
        if spent > job["max_amount"]:
            yield f"{job_id} costs {spent}, at most {job['max_amount']} was promised"
        if billed_ms > limits.replicas * limits.max_duration_ms:
            yield f"{job_id} is billed for longer than its max_duration"
        if job["state"] == "queued" and job["cancel_requested_at_ms"] is not None:
            yield f"{job_id} was cancelled and is queued"


def _is_beyond_checkpoint(lease: sqlite3.Row, members: list[sqlite3.Row], job: sqlite3.Row) -> bool:
    """Work that a client ended by its own will is its to pay, unless the gang was broken before."""
    ends = [other["ended_at_ms"] for other in members if other["reason"] in EXCLUDING | PAUSING]
    asked_ms = job["cancel_requested_at_ms"]
    by_client = lease["reason"] == "cancelled" and asked_ms is not None and asked_ms <= min(ends, default=0)
    return lease["billed_ms"] > lease["checkpoint_useful_ms"] and not by_client


def _why_it_ended(members: list[sqlite3.Row]) -> str | None:
    """The attempt. What a node broke comes first, then what sent it elsewhere, then what the job did itself."""
    to_the_end = [lease for lease in members if lease["left_at_ms"] is None]
    reasons = [
        lease["reason"] for lease in sorted(to_the_end, key=lambda lease: (lease["ended_at_ms"] or 0, lease["rank"]))
    ]
    if None in reasons:
        return None
    broken = [reason for reason in reasons if reason in EXCLUDING | {"stale"}]
    elsewhere = [reason for reason in reasons if reason in PAUSING | {"preempted"}]
    itself = [reason for reason in reasons if reason not in {"completed", "gang_ended"}]
    return str([*broken, *elsewhere, *itself, "gang_ended" if "gang_ended" in reasons else "completed"][0])


def _places(tables: Tables) -> Iterator[str]:
    """Who does not get a job again: for good, or for a while."""
    words = (
        "SELECT lease_id FROM lease_events WHERE refusal IS NULL AND json_extract(event, '$.body.kind') = 'declined' "
        "AND json_extract(event, '$.body.code') = ?"
    )
    for_good = {row[0] for row in tables.all(words, DECLINED_FOR_GOOD)}
    for job_id, leases in tables.leases_of_job.items():
        excluded: set[str] = set()
        paused_until: Counter[str] = Counter()
        pauses: Counter[str] = Counter()
        for lease in leases:
            node_id = lease["node_id"]
            if node_id in excluded:
                yield f"{job_id} came again to {node_id}, which was excluded"
            if lease["granted_at_ms"] < paused_until[node_id]:
                yield f"{job_id} came again to {node_id} too soon"
            if lease["reason"] in EXCLUDING or lease["lease_id"] in for_good:
                excluded.add(node_id)
            if lease["reason"] in PAUSING:
                paused_until[node_id] = lease["ended_at_ms"] + min(PAUSE_MS << pauses[node_id], LONGEST_PAUSE_MS)
                pauses[node_id] += 1


def _preemptions(tables: Tables) -> Iterator[str]:
    """Only spot leases make room, only for jobs at the full price, and not before they have run for a while."""
    spot = {job_id: bool(json.loads(job["spec"]).get("spot")) for job_id, job in tables.jobs.items()}
    said = "SELECT lease_id FROM job_events WHERE kind = 'lease' AND json_extract(data, '$.reason') = 'preempted'"
    preempted = {lease_id for (lease_id,) in tables.all(said)}  # also whoever was found lying afterwards
    for job_id, leases in tables.leases_of_job.items():
        suffered = 0
        for lease in leases:
            name, other, started = lease["lease_id"], lease["preempted_for"], lease["started_at_ms"]
            if lease["reason"] == "preempted" and other is None:
                yield f"{name} was preempted for nobody"
            if other is not None and (not spot[job_id] or spot[other]):
                yield f"{name} made room for {other}: it is {'' if spot[job_id] else 'no '}spot, that is too"
            if other is not None and started is not None and started <= lease["stop_requested_at_ms"]:
                ran_ms = lease["stop_requested_at_ms"] - started
                if ran_ms < SPOT_PROTECTED_MS << min(suffered, 4):
                    yield f"{name} made room after {ran_ms} ms, its job's preemption number {suffered + 1}"
            suffered += name in preempted
        if tables.jobs[job_id]["preemptions"] != suffered:
            yield f"{job_id} was preempted {suffered} times, and remembers {tables.jobs[job_id]['preemptions']}"


class _Limits(NamedTuple):
    max_attempts: int
    on_failure: int
    max_duration_ms: int
    replicas: int


def _limits(tables: Tables, job_id: str) -> _Limits:
    query = (
        "SELECT json_extract(spec, '$.retry.max_attempts'), json_extract(spec, '$.retry.on_failure'), "
        "json_extract(spec, '$.limits.max_duration'), COALESCE(json_extract(spec, '$.verify.replicas'), 1) "
        "FROM jobs WHERE job_id = ?"
    )
    ((attempts, on_failure, max_duration, replicas),) = tables.all(query, job_id)
    extended_ms = tables.jobs[job_id]["max_duration_ms"]
    return _Limits(attempts, on_failure, extended_ms or parse_duration_ms(max_duration), replicas)


def _times(tables: Tables, now_ms: int) -> Iterator[str]:
    for lease in tables.leases:
        names = ("granted_at_ms", "started_at_ms", "exited_at_ms", "ended_at_ms", "decided_at_ms")
        times = [lease[name] for name in names if lease[name] is not None]
        if times != sorted(times) or (times and times[-1] > now_ms):
            yield f"{lease['lease_id']}: its times are out of order: {times}"
        if lease["state"] not in LIVE and lease["ended_at_ms"] is None:
            yield f"{lease['lease_id']} is {lease['state']} and has no end"
        if lease["ended_at_ms"] is not None and lease["reason"] is None:
            yield f"{lease['lease_id']} ended for no reason"
        if lease["amount"] and lease["started_at_ms"] is None:
            yield f"{lease['lease_id']} is billed and never started"
        # Who says after its start that it could not start keeps what a checkpoint of it keeps.
        kept = lease["reason"] == "start_failed" and lease["billed_ms"] <= lease["checkpoint_useful_ms"]
        if lease["reason"] in UNBILLED and lease["amount"] and not kept:
            yield f"{lease['lease_id']} ended by {lease['reason']} and is billed"
        if lease["reason"] in UP_TO_CHECKPOINT and lease["billed_ms"] > lease["checkpoint_useful_ms"]:
            yield f"{lease['lease_id']} ended by {lease['reason']} and is billed beyond its checkpoint"
        if lease["state"] in {"rejected", "inconclusive"} and lease["amount"]:
            yield f"{lease['lease_id']} is {lease['state']} and is billed"
        work = lease["amount"] - lease["verification_amount"]
        if work > lease["max_amount"] or lease["billed_ms"] > lease["max_duration_ms"]:
            yield f"{lease['lease_id']} is billed beyond its budget or duration"
        if work > lease["price_per_gpu_hour"] * lease["billable_gpus"] * lease["billed_ms"] / MS_PER_HOUR:
            yield f"{lease['lease_id']}: {lease['amount']} for {lease['billed_ms']} ms is more than its price"


def _events(tables: Tables) -> Iterator[str]:
    """Every move has its event, and starts where the one before ended."""
    query = (
        "SELECT COALESCE(lease_id, job_id), json_extract(data, '$.from'), json_extract(data, '$.state') FROM job_events "
        "WHERE kind IN ('job', 'lease') ORDER BY id"
    )
    at: dict[str, str | None] = {}
    for name, before, after in tables.all(query):
        if at.get(name) != before:
            yield f"{name} moved from {before}, and was {at.get(name)}"
        at[name] = after
    for row in tables.jobs.values():
        if at.get(row["job_id"]) != row["state"]:
            yield f"{row['job_id']} is {row['state']}; its events say {at.get(row['job_id'])}"
    for row in tables.leases:
        if at.get(row["lease_id"]) != row["state"]:
            yield f"{row['lease_id']} is {row['state']}; its events say {at.get(row['lease_id'])}"
