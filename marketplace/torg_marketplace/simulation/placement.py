"""Where jobs come to run, against what clients were told and nodes ask: at once when there is room, from the newest checkpoint, by the deadline
that each try renews; and whether what the matcher remembers is what the database says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.rows import node_snapshots
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.fleet import Fleet
from torg_marketplace.simulation.tables import Tables
from torg_protocol.quantities import parse_duration_ms
from torg_protocol.versions import PROTOCOL_VERSION

if TYPE_CHECKING:
    from torg_marketplace.simulation.world import World

_REMEMBERED = ("accepting", "price", "slots_free", "cpu_free", "memory_free", "disk_free", "reputation", "present")
_DEFAULT_MEMORY_SHARE = 4  # a simulated node has room for so many jobs that ask for nothing in particular
PASSES = 3  # of the matcher, in which there was room for a job


async def forgotten(world: World) -> list[str]:
    """What this process did, its matcher knows; nobody has to look for it."""
    market = world.market
    market.book.checked_at_ms = market.clock.now_ms()
    live = (await live_engine(market)).fleet
    async with market.reading() as unit:
        fresh = Engine(market.policy.decimals, await node_snapshots(unit)).fleet
    if live.row_of.keys() != fresh.row_of.keys():
        return [f"the matcher knows {sorted(live.row_of)}, registered are {sorted(fresh.row_of)}"]
    found = {node_id: (_known(live, row), _known(fresh, fresh.row_of[node_id])) for node_id, row in live.row_of.items()}
    return [
        f"the matcher believes of {node_id} {known}, it is {real}"
        for node_id, (known, real) in found.items()
        if known != real
    ]


def _known(fleet: Fleet, row: int) -> dict[str, object]:
    """Of one node, in words that two fleets share."""
    known: dict[str, object] = {name: getattr(fleet, name)[row].item() for name in _REMEMBERED}
    return known | {"gpu_free": sorted(fleet.gpu_free[row][fleet.gpu_free[row] > 0].tolist())}


def deadlines(tables: Tables) -> Iterator[str]:
    """Each try that counted renews the time in the queue; a declined grant, which anybody could repeat for ever, does not."""
    for job in tables.jobs.values():
        if job["state"] != "queued":
            continue
        leases = tables.leases_of_job.get(job["job_id"], [])
        declined = [lease for lease in leases if lease["reason"] == "declined"]
        timeout_ms = parse_duration_ms(json.loads(job["spec"])["limits"]["queue_timeout"])
        left_ms = job["queue_deadline_ms"] - job["queued_at_ms"]
        if left_ms > timeout_ms or (left_ms < timeout_ms and not declined):
            yield f"{job['job_id']} may wait for {left_ms} ms, its queue_timeout is {timeout_ms} ms"
        last = [lease["reason"] for lease in leases if lease["attempt"] == leases[-1]["attempt"]]  # of a gang, several
        was_declined = "declined" in last and {"declined", "gang_ended"}.issuperset(last)
        if was_declined and left_ms == timeout_ms and job["queued_at_ms"] > job["created_at_ms"]:
            yield f"{job['job_id']} was declined, and may wait for all of {timeout_ms} ms again"


def resumes_from_newest(tables: Tables, lease: sqlite3.Row, resumed: str | None) -> Iterator[str]:
    """What was stored last and not rejected is what the next attempt goes on from."""
    query = (
        "SELECT json_extract(e.event, '$.body.checkpoint.name'), l.fence FROM lease_events e JOIN leases l USING (lease_id) "
        "WHERE l.job_id = ? AND l.fence < ? AND e.refusal IS NULL AND json_extract(e.event, '$.body.kind') = 'checkpoint' "
        "ORDER BY l.fence, e.received_at_ms, e.sequence"
    )
    stored = tables.all(query, lease["job_id"], lease["fence"])
    before = [other for other in tables.leases_of_job[lease["job_id"]] if other["fence"] < lease["fence"]]
    rejected = {other["fence"] for other in before if other["reason"] == "verification_rejected"}
    if (
        _policy(tables, lease["job_id"]) == "replay"
    ):  # where each answers for its own; what nobody can tell is not built upon
        dropped = rejected | {other["fence"] for other in before if _could_not_tell(other["verdict"])}
    else:
        dropped = set(range(max(rejected, default=-1) + 1))
    newest = [name for name, fence in stored if fence not in dropped][-1:]
    if newest != [resumed] and (newest or resumed is not None):
        yield f"{lease['lease_id']} resumes from {resumed}, the newest checkpoint is {newest}"


def _could_not_tell(verdict: str | None) -> bool:
    """Not so where the job failed on it and is tried again: that is not paid, whatever its checkpoints are worth."""
    found = json.loads(verdict or "{}")
    return found.get("result") == "inconclusive" and not found["detail"].startswith("it led to nothing")


def _policy(tables: Tables, job_id: str) -> str:
    return str(json.loads(tables.jobs[job_id]["spec"])["verify"]["policy"])


def idle_room(tables: Tables, now_ms: int) -> set[tuple[str, int]]:
    """Jobs (and their generation) that wait although a node could take them: of the plain ones, where nothing is kept for a gang."""
    waiting = [job for job in tables.jobs.values() if job["state"] == "queued"]
    specs = {job["job_id"]: json.loads(job["spec"]) for job in waiting}
    if any(spec.get("gang") for spec in specs.values()):
        return set()
    plain = {job_id for job_id, spec in specs.items() if not spec.get("volumes") and not _is_share(spec)}
    return {
        (job["job_id"], job["generation"])
        for job in waiting
        if job["job_id"] in plain
        and "vault" not in (job["waiting_for"] or "")
        and job["queue_deadline_ms"] > now_ms
        and any(_could_take(node, job, specs[job["job_id"]], now_ms) for node in _nodes(tables))
    }


def _is_share(spec: dict[str, object]) -> bool:
    resources = spec["resources"]
    return isinstance(resources, dict) and resources.get("gpu_fraction", "1") != "1"


def _nodes(tables: Tables) -> list[sqlite3.Row]:
    query = (
        "SELECT n.node_id, n.offer, n.protocol_version, (SELECT COUNT(*) FROM allocations a WHERE a.node_id = n.node_id AND a.unit "
        "LIKE 'slot:%') AS slots, (SELECT COUNT(DISTINCT substr(a.unit, 1, 5)) FROM allocations a WHERE a.node_id = n.node_id AND "
        "a.unit LIKE 'gpu:%') AS gpus, (SELECT COUNT(*) FROM leases l WHERE l.node_id = n.node_id AND l.state IN "
        "('granted', 'preparing', 'running', 'stopping')) AS leases FROM nodes n WHERE n.state = 'active' AND n.liveness = 'alive' "
        "AND n.connected"
    )
    return tables.all(query)


def _could_take(node: sqlite3.Row, job: sqlite3.Row, spec: dict[str, object], now_ms: int) -> bool:
    """Whole GPUs that are free, or slots. An offer's price is that of a whole GPU, and so is a job's ceiling."""
    node_id, offer_text, version, slots, gpus, leases = node
    offer, resources = json.loads(offer_text), spec["resources"]
    if not isinstance(resources, dict) or version != PROTOCOL_VERSION or leases >= _DEFAULT_MEMORY_SHARE - 1:
        return False
    paused = json.loads(job["paused_nodes"]).get(node_id, {}).get("until_ms", 0) > now_ms
    asked = offer.get("spot_price_per_gpu_hour") if spec.get("spot") else offer["price_per_gpu_hour"]
    if paused or node_id in json.loads(job["excluded_nodes"]) or asked is None or asked > job["price_ceiling"]:
        return False
    wanted = resources.get("gpus", 0)
    free = len(offer["inventory"].get("gpus", ())) - gpus if wanted else offer["slots"] - slots
    return bool(free >= max(1, wanted))
