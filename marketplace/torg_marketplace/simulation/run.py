"""Runs a plan and says what broke, if anything; makes a broken plan as small as it can."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from torg_chain.vault import DISPUTE_DELAY_S
from torg_marketplace.flow.liveness import on_startup, sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.slash import RESEND_AFTER_MS
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.rules.leases import was_down
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.simulation.books import MOST_PAYEES
from torg_marketplace.simulation.cases import decide, given_back, object_to
from torg_marketplace.simulation.client import SimulatedClient, make_client, meddle
from torg_marketplace.simulation.collateral import stake
from torg_marketplace.simulation.faults import fail, outage, stale_grant
from torg_marketplace.simulation.invariants import broken
from torg_marketplace.simulation.keeping import (
    BLOB_GRACE_MS,
    KEEP_BLOBS_MS,
    KEEP_EVIDENCE_MS,
    KEEP_HISTORY_MS,
    KEEP_UNUSED_MS,
    keep_house,
    nothing_is_left,
)
from torg_marketplace.simulation.leaving import all_leave, begin_to_leave
from torg_marketplace.simulation.node import SimulatedNode, make_node
from torg_marketplace.simulation.placement import forgotten
from torg_marketplace.simulation.plan import Kind, Plan, Step, make_plan
from torg_marketplace.simulation.promises import Parties, broken_promises
from torg_marketplace.simulation.reading import seen_in_the_end
from torg_marketplace.simulation.settling import (
    reconcile_books,
    settle_in_the_end,
    settle_step,
    slash,
    spoil_accounts,
)
from torg_marketplace.simulation.tables import look
from torg_marketplace.simulation.the_end import unfinished, unpaid_work
from torg_marketplace.simulation.work import Character
from torg_marketplace.simulation.world import World, open_world
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION

PRICE = 3_600_000  # one base unit per useful millisecond
POLICY = MarketPolicy(
    accept_within_ms=40_000,
    preparing_limit_ms=120_000,
    stopping_limit_ms=180_000,
    usage_interval_ms=60_000,
    settlement_max_age_ms=60_000,
    settlement_threshold=50_000,
    max_payees=MOST_PAYEES,
    verify_attempts=3,
    spot_protected_ms=5_000,
    blob_grace_ms=BLOB_GRACE_MS,
    keep_blobs_ms=KEEP_BLOBS_MS,
    keep_evidence_ms=KEEP_EVIDENCE_MS,
    keep_history_ms=KEEP_HISTORY_MS,
    keep_unused_ms=KEEP_UNUSED_MS,
)
_OPEN = {"wanted", "proposed"}
_SWEEP_AT_LEAST_EVERY_MS = 15_000
_IMPATIENT_MS = 1_000  # with a job that was cancelled, and is not over yet
_CALM_ROUNDS, _CALM_ROUND_MS = 50, 25_000  # nodes are heard of in time


@dataclass(frozen=True, slots=True)
class Failure:
    plan: Plan
    step: Step | None  # None: in the end
    problems: tuple[str, ...]

    def __str__(self) -> str:
        where = "in the end" if self.step is None else f"after step {self.step}"
        steps = "\n".join(f"  {step}" for step in self.plan.steps)
        problems = "\n".join(f"  {problem}" for problem in self.problems)
        return f"seed {self.plan.seed}, {where}:\n{problems}\n{len(self.plan.steps)} steps, {self.plan.nodes} nodes:\n{steps}"


@dataclass(slots=True)
class Report:
    """What happened, for those who want to know whether anything did."""

    seeds: int = 0
    steps: int = 0
    virtual_ms: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    waits_ms: list[int] = field(default_factory=list)
    paid: int = 0
    given_back: int = 0
    failure: Failure | None = None

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.virtual_ms += other.virtual_ms
        self.kinds += other.kinds
        self.jobs += other.jobs
        self.reasons += other.reasons
        self.waits_ms += other.waits_ms
        self.paid += other.paid
        self.given_back += other.given_back
        self.failure = self.failure or other.failure


def simulate(seed: int, *, nodes: int | None = None, steps: int = 80) -> Report:
    """One market, from its seed. The same seed does the same on every machine."""
    return run_plan(make_plan(seed, nodes=nodes, steps=steps))


def run_plan(plan: Plan) -> Report:
    with _quiet(), asyncio.Runner() as runner:
        return runner.run(_run(plan))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong here is meant to, and nobody's log should fill with it."""
    log = logging.getLogger("torg_marketplace")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def shrink(failure: Failure, tell: Callable[[str], None] = lambda _: None) -> Failure:
    """Delta debugging: leaves out halves, quarters, ... of the steps as long as something still breaks."""
    size = len(failure.plan.steps)
    chunk = max(1, size // 2)
    while True:
        position, smaller = 0, False
        while position < len(failure.plan.steps):
            steps = failure.plan.steps
            without = failure.plan.only(steps[:position] + steps[position + chunk :])
            found = run_plan(without).failure
            if found is not None:
                failure, smaller = found, True
                tell(f"{len(failure.plan.steps)} steps still break it")
            else:
                position += chunk
        if chunk == 1 and not smaller:
            return failure
        chunk = max(1, chunk // 2)


async def _run(plan: Plan) -> Report:
    world = open_world(plan.seed, POLICY)
    parties = await _assemble(world, plan)
    report = Report(seeds=1, steps=len(plan.steps))
    for done, step in enumerate(plan.steps, start=1):
        report.kinds[step.kind] += 1
        problems = await _checked(parties, step)
        if problems:
            report.failure = Failure(plan.only(plan.steps[:done]), step, tuple(problems))
            return report
    problems = await _finish(parties, plan)
    if problems:
        report.failure = Failure(plan, None, tuple(problems))
    _describe(report, parties)
    return report


async def _assemble(world: World, plan: Plan) -> Parties:
    chance = random.Random(plan.seed)
    characters = [Character.HONEST, Character.HONEST, Character.SKEWED, Character.LIAR]
    nodes = []
    for number in range(plan.nodes):
        character = chance.choice(characters)
        skew_ms = chance.randrange(-90_000, 90_000) if character is Character.SKEWED else 0
        price = PRICE + number * chance.choice([0, 1_000, 400_000])
        slots, gpus = chance.randrange(1, 4), chance.choice([0, 0, 1, 2])
        spot = chance.choice([None, price // 2, price // 3, price // 3])
        slices = {"gpu_slices": chance.choice([2, 3])} if world.shares_gpus else {}
        gpus = max(1, gpus - 1) if world.shares_gpus else gpus  # few, so that those who would share them meet
        node = make_node(world, price=price, slots=slots, gpus=gpus, character=character, skew_ms=skew_ms, **slices)
        node.offer = node.offer.model_copy(update={"spot_price_per_gpu_hour": spot})
        if plan.seed % 5 == 1 and number % 2:  # a market half of which has not been updated
            node.protocol_version = OLDEST_PROTOCOL_VERSION
        nodes.append(node)
    for node in nodes[::2]:
        owner = world.randomness.keypair().pubkey()
        amount = chance.choice([5_000, 10**6, 10**9])
        address = stake(world.chain.finalized, world.market.network, node.key.pubkey(), owner, amount)
        node.offer = node.offer.model_copy(update={"collateral": address})
    strangers = int(world.shares_gpus)  # who must not meet on a GPU
    clients = [await make_client(world, deposit=chance.choice([10**6, 10**9])) for _ in range(plan.clients + strangers)]
    await on_startup(world.market)
    for node in nodes:
        await node.come_back()
    for client in clients:
        for _ in range(3):
            await client.submit(chance)
    now_ms = world.clock.time_ms
    return Parties(world, nodes, clients, started_ms=now_ms, awake_ms=now_ms, swept_ms=now_ms)


async def _checked(parties: Parties, step: Step) -> list[str]:
    """A step and everything that must hold after it; an exception is a broken promise too."""
    try:
        kind = await _sweep_if_due(parties, step.after_ms)
        if kind is not None and (problems := await _problems(parties, kind)):
            return problems
        said = await _act(parties, step, random.Random(step.dice))
        return said + await _problems(parties, step.kind)
    except Exception:  # noqa: BLE001 - whatever it is, nobody may ever see it
        return [traceback.format_exc(limit=-6)]


async def _problems(parties: Parties, kind: Kind) -> list[str]:
    world = parties.world
    found = await forgotten(world) if kind is Kind.MATCH else []
    found += broken(world.database, world.clock.time_ms)
    return found + broken_promises(parties, look(world.database), kind)


async def _sweep_if_due(parties: Parties, after_ms: int) -> Kind | None:
    parties.world.advance(after_ms)
    if parties.world.clock.time_ms - parties.swept_ms < _SWEEP_AT_LEAST_EVERY_MS:
        return None
    return await _sweep(parties)


async def _sweep(parties: Parties) -> Kind:
    now_ms = parties.world.clock.time_ms
    if was_down(parties.awake_ms, now_ms, parties.world.market.policy):
        parties.started_ms = now_ms  # it slept, as far as it knows, and every lease has a fresh grace
    await sweep(parties.world.market)
    parties.swept_ms = parties.awake_ms = now_ms
    return Kind.SWEEP


async def _act(parties: Parties, step: Step, chance: random.Random) -> list[str]:
    node = parties.nodes[step.who % len(parties.nodes)]
    client = parties.clients[step.who % len(parties.clients)]
    match step.kind:
        case Kind.NODE:
            await node.act(chance)
            await parties.world.pulse.renew(parties.world.market)
        case Kind.CROWD:
            return await _crowd(parties, chance)
        case Kind.SUBMIT | Kind.OVERSPEND | Kind.CANCEL | Kind.EXTEND | Kind.DEPOSIT:
            return await _as_client(client, step.kind, chance)
        case Kind.CRASH | Kind.CUT_OFF | Kind.STALL | Kind.DRAIN:
            await fail(node, step.kind, chance)
        case Kind.RUSH:
            return await _rush(parties, client, chance)
        case Kind.DISPUTE | Kind.DECIDE:
            return await _case(parties, step.kind, client, chance)
        case Kind.HOUSEKEEPING:
            return await keep_house(parties.world, parties.told, parties.clients, chance)
        case Kind.LEAVE:
            await begin_to_leave(parties.world, client)
        case Kind.HAUNT if node.online:
            return await node.haunt(chance)
        case Kind.IMPERSONATE:
            others = [other for other in parties.nodes if other is not node]
            said = await node.impersonate(chance.choice(others)) if others else []
            return said + await meddle(parties.world, client, chance)
        case _:
            await _work(parties, step.kind, node, chance)
    return []


async def _as_client(client: SimulatedClient, kind: Kind, chance: random.Random) -> list[str]:
    await client.insist()
    match kind:
        case Kind.SUBMIT:
            return await client.submit(chance)
        case Kind.OVERSPEND:
            return await client.overspend(chance)
        case Kind.EXTEND:
            return await client.extend(chance)
        case Kind.CANCEL:
            await client.cancel(chance)
        case _:
            await client.deposit(chance.randrange(1, 10**6))
    return []


async def _crowd(parties: Parties, chance: random.Random) -> list[str]:
    """Everybody at once, each with its own dice: the event loop takes them in the same order each time."""
    submissions = [client.submit(random.Random(chance.getrandbits(32))) for client in parties.clients]
    said = await asyncio.gather(*submissions, *_rounds(parties, chance))
    await parties.world.pulse.renew(parties.world.market)
    await match_pending(parties.world.market)
    said += [await _problems(parties, Kind.MATCH)]
    parties.world.advance(500)
    await asyncio.gather(*_rounds(parties, chance))
    await parties.world.pulse.renew(parties.world.market)
    return [problem for problems in said for problem in problems or ()]


def _rounds(parties: Parties, chance: random.Random) -> list[Coroutine[Any, Any, None]]:
    return [node.act(random.Random(chance.getrandbits(32)), in_crowd=True) for node in parties.nodes]


async def _case(parties: Parties, kind: Kind, client: SimulatedClient, chance: random.Random) -> list[str]:
    if kind is Kind.DECIDE:
        return await decide(parties.world, chance)
    mine = chance.random() < 0.8
    jobs = [job for other in parties.clients if other is client or not mine for job in other.jobs]
    return await object_to(parties.world, client, jobs, chance)


async def _rush(parties: Parties, client: SimulatedClient, chance: random.Random) -> list[str]:
    """Promises are checked after each pass of the matcher: what a node says later in this step it had not said then."""
    said = [problem for _ in range(3) for problem in await client.submit(chance, spot=True)]
    for _ in range(3):
        await match_pending(parties.world.market)
        said += await _problems(parties, Kind.MATCH)
        parties.world.advance(2_000)
        for node in parties.nodes:
            if node.online:
                await node.act(chance)
        await parties.world.pulse.renew(parties.world.market)
    for _ in range(2):
        said += await client.submit(chance, spot=False)
        await match_pending(parties.world.market)
        said += await _problems(parties, Kind.MATCH)
    return said


async def _work(parties: Parties, kind: Kind, node: SimulatedNode, chance: random.Random) -> None:
    """The marketplace's side, and the weather."""
    world, chain = parties.world, parties.world.chain
    match kind:
        case Kind.MATCH:
            await match_pending(world.market)
        case Kind.SWEEP:
            await _sweep(parties)
        case Kind.VERIFY:
            world.evaluator.failing = chance.choice([0.0, 0.0, 0.3])
            await verify_pending(world.market)
            await slash(world)
        case Kind.SETTLE:
            await settle_step(parties, chance)
        case Kind.RECONCILE:
            await reconcile_books(world)
        case Kind.STALE_GRANT:
            await stale_grant(world, node, chance)
        case Kind.OUTAGE:
            await outage(parties, chance)
        case Kind.CHAIN_WEATHER:
            chain.down = chance.random() < 0.3
            chain.lose = chance.choice([0.0, 0.3, 0.9])
            chain.delay, chain.lose_answer = (chance.choice([0.0, 0.3]) for _ in range(2))
            spoil_accounts(parties, chance)
            chain.lag = chance.choice([0.0, 0.0, 0.5]) if world.keeps_house else 0.0
        case Kind.FORK:
            chain.fork()
        case Kind.LONG_SILENCE:
            for _ in range(chance.randrange(2, 15)):
                world.advance(_SWEEP_AT_LEAST_EVERY_MS)
                await _sweep(parties)
        case _:
            pass


async def _finish(parties: Parties, plan: Plan) -> list[str]:
    """Everybody is well again, and time passes until nothing is left to do."""
    world, chance = parties.world, random.Random(plan.seed)
    world.chain.calm()
    world.evaluator.failing = 0.0
    if plan.seed % 2:
        for client in parties.clients:
            for _ in client.jobs:
                await client.cancel(chance)
        world.advance(_IMPATIENT_MS)
        for client in parties.clients:
            await client.insist()
    try:
        for number in range(_CALM_ROUNDS):
            world.advance(_CALM_ROUND_MS)
            await _settle_down(parties, chance, together=plan.seed % 3 != 0)
            await world.pulse.renew(world.market)
            await _sweep(parties)
            await match_pending(world.market)
            if problems := await _problems(parties, Kind.MATCH):
                return problems
            await verify_pending(world.market)
            await settle_in_the_end(parties, plan.seed, number)
            if problems := await _problems(parties, Kind.SWEEP):
                return problems
            if not any(unfinished(parties, look(world.database))):
                break
        await reconcile_books(world)
        await _slash_in_the_end(world)
    except Exception:  # noqa: BLE001 - as above
        return [traceback.format_exc(limit=-6)]
    tables = look(world.database)
    late = [
        f"{row[0]} is {row[1]} for ever" for row in tables.all("SELECT slash_id, state FROM slashes") if row[1] in _OPEN
    ]
    problems = await _problems(parties, Kind.SETTLE)
    problems = [*unfinished(parties, tables), *unpaid_work(parties, tables), *late, *problems]
    problems = problems or await seen_in_the_end(parties)
    return problems if problems or not world.keeps_house else await _close(parties, chance)


async def _close(parties: Parties, chance: random.Random) -> list[str]:
    """When all is done: everybody leaves, and what is kept goes."""
    world = parties.world
    try:
        said = await keep_house(world, parties.told, parties.clients, chance)
        said += await all_leave(world, parties.clients, chance)
        return said + await nothing_is_left(world)
    except Exception:  # noqa: BLE001 - as above
        return [traceback.format_exc(limit=-6)]


async def _settle_down(parties: Parties, chance: random.Random, *, together: bool) -> None:
    if together:
        dice = [random.Random(chance.getrandbits(32)) for _ in parties.nodes]
        await asyncio.gather(
            *(node.settle_down(mine, in_crowd=True) for node, mine in zip(parties.nodes, dice, strict=True))
        )
        return
    for node in parties.nodes:
        await node.settle_down(chance, in_crowd=False)


async def _slash_in_the_end(world: World) -> None:
    """As many days as one collateral could have slashes; each is proposed, waits its day, and is executed."""
    for _ in range(len(look(world.database).all("SELECT 1 FROM slashes WHERE state IN ('wanted', 'proposed')"))):
        for _ in range(4):
            world.advance(RESEND_AFTER_MS)
            await slash(world)
        world.advance(DISPUTE_DELAY_S * 1000)
        for _ in range(4):
            await slash(world)
            world.advance(RESEND_AFTER_MS)


def _describe(report: Report, parties: Parties) -> None:
    tables = look(parties.world.database)
    report.virtual_ms = parties.world.clock.time_ms - parties.world.chain.start_ms
    report.jobs.update(job["state"] for job in tables.jobs.values())
    report.reasons.update(lease["reason"] or lease["state"] for lease in tables.leases)
    report.given_back = sum(given_back(tables).values())
    report.paid = sum(parties.world.chain.paid.values())
    report.waits_ms = [
        leases[0]["granted_at_ms"] - tables.jobs[job_id]["created_at_ms"]
        for job_id, leases in tables.leases_of_job.items()
    ]
