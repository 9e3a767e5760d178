"""Volumes in the simulated market: what nodes store of them, and what must be true of them after every step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torg_protocol.messages import CheckpointStored, Grant, LeaseEventBody, UsageClaimed, VolumeSnapshot, VolumesStored

if TYPE_CHECKING:
    from torg_marketplace.simulation.tables import Tables
    from torg_marketplace.simulation.world import World

NAMES = ("runs", "models")  # few: jobs meet
MAKES = {"completed", "cancelled", "max_duration", "budget"}  # ends of leases after which a volume has a new generation


def snapshots(world: World, grant: Grant, *, after: LeaseEventBody) -> tuple[VolumesStored, ...]:
    """What a node says of the volumes that its job writes, after a checkpoint and after its last claim; nothing when it writes none, or not
    here."""
    names, at_end = grant.spec.written_volumes, isinstance(after, UsageClaimed) and after.record.final
    if not (at_end or isinstance(after, CheckpointStored)) or not names or (grant.gang is not None and grant.gang.rank):
        return ()
    stored = tuple(
        VolumeSnapshot(name=name, blob=world.blobs.put(f"{name} of {grant.lease_id} at {world.clock.time_ms}".encode()))
        for name in names
    )
    return (VolumesStored(volumes=stored, at_end=at_end),)


def broken_volumes(tables: Tables) -> Iterator[str]:
    """One writer; generations in a row, each made by the attempt whose end it is."""
    rows = _named(tables, "SELECT * FROM job_volumes ORDER BY job_id")
    volumes = {(row["account"], row["name"]): row for row in _named(tables, "SELECT * FROM volumes")}
    live = {
        lease["job_id"] for lease in tables.leases if lease["state"] in {"granted", "preparing", "running", "stopping"}
    }
    made: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        if (row["account"], row["name"]) not in volumes and tables.jobs[row["job_id"]]["closed_at_ms"] is None:
            yield f"{row['job_id']} is open, and its volume {row['name']} is forgotten"
    rows = [row for row in rows if _is_of(tables, row, volumes.get((row["account"], row["name"])))]
    for row in rows:
        key = row["account"], row["name"]
        volume = volumes[key]
        if row["written_generation"] is not None:
            made[key].append(row["written_generation"])
            yield from _of_its_end(tables, row["job_id"], row["left_fence"])
        if not row["read_only"] and row["job_id"] in live and volume["writer"] != row["job_id"]:
            yield f"{row['job_id']} runs and writes {row['name']}, which is {volume['writer']}'s"
    for key, volume in volumes.items():
        writer = volume["writer"]
        if writer is not None and tables.jobs[writer]["closed_at_ms"] is not None:
            yield f"{writer} is closed and keeps {key[1]}"
        if sorted(made[key]) != list(range(1, volume["generation"] + 1)):
            yield f"{key[1]} is at generation {volume['generation']}, and jobs made {sorted(made[key])}"
        newest = [
            row
            for row in rows
            if (row["account"], row["name"]) == key and row["written_generation"] == volume["generation"]
        ]
        if newest and json.loads(newest[0]["left"] or "{}").get("digest") != volume["digest"]:
            yield f"{key[1]} holds other bytes than {newest[0]['job_id']} left in it"


def _is_of(tables: Tables, row: dict[str, Any], volume: dict[str, Any] | None) -> bool:
    """Not of one of the same name that nobody used for long, and that was forgotten."""
    return volume is not None and bool(tables.jobs[row["job_id"]]["created_at_ms"] >= volume["created_at_ms"])


def _named(tables: Tables, query: str) -> list[dict[str, Any]]:
    cursor = tables.database.execute(query)
    return [dict(zip((column[0] for column in cursor.description), row, strict=True)) for row in cursor]


def _of_its_end(tables: Tables, job_id: str, fence: int) -> Iterator[str]:
    leases = [lease for lease in tables.leases_of_job[job_id] if lease["fence"] == fence]
    if not leases or any(lease["ended_at_ms"] is None for lease in leases):
        yield f"{job_id} made a generation before its attempt {fence} ended"
    elif not {lease["reason"] for lease in leases} & MAKES:
        yield f"{job_id} made a generation of an attempt that ended {[lease['reason'] for lease in leases]}"
