"""What a simulated market keeps, throws away and tells: blobs, what nodes said, webhooks. The marketplace's own housekeeping, and what must hold after it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.retention import forget_deliveries, forget_history, forget_unused
from torg_marketplace.flow.webhooks import (
    Room,
    create_webhook,
    delete_webhook,
    due_deliveries,
    enqueue_deliveries,
    record_answer,
)
from torg_marketplace.simulation.client import SimulatedClient
from torg_marketplace.simulation.tables import Tables, look
from torg_marketplace.simulation.world import World
from torg_protocol.ids import AccountId
from torg_protocol.webhooks import WebhookRequest

# Of the simulated market: short enough that things go while others go on.
BLOB_GRACE_MS, KEEP_BLOBS_MS, KEEP_EVIDENCE_MS, KEEP_HISTORY_MS = 10_000, 45_000, 120_000, 45_000
KEEP_UNUSED_MS = 150_000
_LOOKED_AT = {"metric", "replay", "activation", "quorum"}  # policies after which files are evidence
_KINDS = ("job", "lease", "receipt", "checkpoint")
_PAUSES_MS = (5_000, 30_000, 120_000, 600_000)  # after the first tries that failed
_ONE_TRY_MS = 60_000  # nobody else sends it meanwhile
_ROOM = Room(tries=6, of_account=3, under_way={}, of_slow=1, slow=frozenset())
_ROUNDS = 10  # in which all that has happened is told


@dataclass
class Hook:
    """`after`, `until`: the newest event when it was made, and when it was deleted."""

    account: AccountId
    kinds: tuple[str, ...]
    after: int
    until: int | None = None


@dataclass
class Told:
    """What the receivers of webhooks know."""

    hooks: dict[str, Hook] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    not_before_ms: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


async def keep_house(world: World, told: Told, clients: list[SimulatedClient], chance: random.Random) -> list[str]:
    """Returns what should not have happened."""
    await _subscribe(world, told, chance.choice(clients), chance)
    await collect_garbage(world.market)
    await forget_history(world.market)
    await forget_unused(world.market)
    await forget_deliveries(world.market)
    said = await _tell(world, told, chance)
    return [*said, *kept(world, told, look(world.database))]


async def nothing_is_left(world: World) -> list[str]:
    """In the end, long after the last job: what is in volumes is kept, and of what parties sent nothing else."""
    world.advance(BLOB_GRACE_MS + KEEP_BLOBS_MS + KEEP_EVIDENCE_MS)
    await collect_garbage(world.market)
    await forget_history(world.market)
    tables = look(world.database)
    in_volumes = {digest for (digest,) in tables.all("SELECT digest FROM volumes WHERE digest IS NOT NULL")}
    sent = {digest for digest, _ in world.blobs.sent_at_ms}
    uploads = {digest for (digest,) in tables.all("SELECT digest FROM blob_uploads")}
    left = (sent & world.blobs.stored.keys() | uploads) - in_volumes
    lost = in_volumes - world.blobs.stored.keys()
    said = tables.all("SELECT COUNT(*) FROM lease_events")[0][0]
    words = [f"{said} words of nodes are kept"] if said else []
    gone = [f"{digest} is in a volume, and is not stored any more" for digest in sorted(lost)]
    return [*(f"{digest} is kept for nobody" for digest in sorted(left)), *gone, *words]


async def _subscribe(world: World, told: Told, client: SimulatedClient, chance: random.Random) -> None:
    living = [name for name, hook in told.hooks.items() if hook.account == client.account and hook.until is None]
    newest = world.database.execute("SELECT COALESCE(MAX(id), 0) FROM job_events").fetchone()[0]
    async with world.market.transaction() as unit:
        if len(living) < 2:
            kinds = tuple(kind for kind in _KINDS if chance.random() < 0.5) or ("job",)
            url = f"https://receiver{len(told.hooks)}.example/torg"
            request = WebhookRequest.model_validate({"url": url, "kinds": kinds})
            made = await create_webhook(unit, client.account, request)
            told.hooks[made.webhook.webhook_id] = Hook(client.account, kinds, newest)
        elif chance.random() < 0.3:
            gone = chance.choice(living)
            await delete_webhook(unit, client.account, gone)
            told.hooks[gone].until = newest


async def _tell(world: World, told: Told, chance: random.Random) -> list[str]:
    """Each receiver answers, or not, or is too slow to be heard."""
    for _ in range(_ROUNDS):
        if not await enqueue_deliveries(world.market):
            break
    now_ms, said = world.clock.time_ms, []
    for due in await due_deliveries(world.market, _ROOM):
        name = due.delivery_id
        if name in told.taken:
            said.append(f"{name} was taken, and is told again")
        if now_ms < told.not_before_ms.get(name, 0):
            said.append(f"{name} is told again {told.not_before_ms[name] - now_ms} ms too soon")
        if (hook := told.hooks.get(due.webhook_id)) is None or hook.until is not None:
            said.append(f"{name} is told to {due.webhook_id}, which was deleted")
        told.tries[name] += 1
        told.not_before_ms[name] = now_ms + _ONE_TRY_MS
        if (dice := chance.random()) < 0.6:
            await record_answer(world.market, name, "204", delivered=True)
            told.taken.add(name)
        elif dice < 0.9:
            await record_answer(world.market, name, "500", delivered=False)
            told.not_before_ms[name] = now_ms + _PAUSES_MS[min(told.tries[name], len(_PAUSES_MS)) - 1]
    return said


def kept(world: World, told: Told, tables: Tables) -> Iterator[str]:
    """After the housekeeping: what somebody needs is there, what nobody may need has gone, everybody was told everything once."""
    for name, digest in _needed(tables, world.clock.time_ms):
        if digest not in world.blobs.stored:
            yield f"{digest}, which {name} needs, is not stored any more"
    dangling = [digest for (digest,) in tables.all("SELECT DISTINCT digest FROM blob_uses")]
    yield from (f"{digest} is used, and is gone" for digest in dangling if digest not in world.blobs.stored)
    yield from _said(tables, world.clock.time_ms)
    newest = tables.all("SELECT COALESCE(MAX(id), 0) FROM job_events")[0][0]
    events = tables.all("SELECT e.id, e.kind, j.client FROM job_events e JOIN jobs j USING (job_id)")
    messages = Counter(tuple(row) for row in tables.all("SELECT webhook_id, event_id FROM webhook_deliveries"))
    wanted = Counter(
        (name, event_id)
        for name, hook in told.hooks.items()
        for event_id, kind, client in events
        if client == hook.account
        and kind in hook.kinds
        and hook.after < event_id <= (newest if hook.until is None else hook.until)
    )
    for name, hook in told.hooks.items():
        if hook.until is not None:  # of what came just before its end nothing need be told
            wanted = Counter({key: count for key, count in wanted.items() if key[0] != name or key in messages})
    for webhook_id, event_id in (messages - wanted) + (wanted - messages):
        times = messages[webhook_id, event_id]
        yield f"{webhook_id} has {times} messages about event {event_id}, {wanted[webhook_id, event_id]} are its own"


def _needed(tables: Tables, now_ms: int) -> Iterator[tuple[str, str]]:
    """Who needs which blob: jobs that are open or were until a while ago, and volumes."""
    yield from (
        (name, digest) for name, digest in tables.all("SELECT name, digest FROM volumes WHERE digest IS NOT NULL")
    )
    for job_id, job in tables.jobs.items():
        spec: dict[str, Any] = json.loads(job["spec"])
        keep_ms = max(KEEP_BLOBS_MS, KEEP_EVIDENCE_MS if spec["verify"]["policy"] in _LOOKED_AT else 0)
        if job["closed_at_ms"] is not None and job["closed_at_ms"] < now_ms - keep_ms:
            continue
        leases = tables.leases_of_job.get(job_id, [])
        points = [each["checkpoint"] for each in [job, *leases] if each["checkpoint"] not in {None, "null"}]
        blobs = [json.loads(point)["blob"] for point in points]
        blobs += [output for lease in leases for output in json.loads(lease["outputs"] or "[]")]
        blobs += [spec["workspace"]] if spec.get("workspace") else []
        blobs += [json.loads(left) for left in _left(tables, job_id)]
        yield from ((job_id, blob["digest"]) for blob in blobs)


def _left(tables: Tables, job_id: str) -> list[str]:
    """In volumes."""
    found = tables.all('SELECT draft, "left" FROM job_volumes WHERE job_id = ?', job_id)
    return [blob for row in found for blob in row if blob is not None]


def _said(tables: Tables, now_ms: int) -> Iterator[str]:
    """What nodes said of a lease is kept word for word, event by event, until its job has been closed for a while."""
    query = (
        "SELECT l.lease_id, l.acknowledged, (SELECT COUNT(*) FROM lease_events e WHERE e.lease_id = l.lease_id), j.closed_at_ms "
        "FROM leases l JOIN jobs j USING (job_id)"
    )
    for lease_id, acknowledged, said, closed_at_ms in tables.all(query):
        is_kept = closed_at_ms is None or closed_at_ms >= now_ms - KEEP_HISTORY_MS
        if said != (acknowledged if is_kept else 0):
            yield f"of {lease_id} {acknowledged} events were taken and {said} are kept, its job is closed since {closed_at_ms}"
