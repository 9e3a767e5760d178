"""A small market with everything that goes wrong in a large one: nodes crash, lose their journals, are cut off and come back;
messages are lost, doubled and late; clients cancel; the marketplace itself sleeps. All from one seed."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from tests.support.actors import Client, Held, Node, make_client, make_node, spec
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_chain.errors import ChainUnavailable
from torg_marketplace.flow.lease_events import on_lease_event
from torg_marketplace.flow.liveness import on_startup, sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.ports import EvaluationFailed, Measurement
from torg_marketplace.storage import ledger
from torg_marketplace.storage.models import AllocationRow, JobRow, LeaseRow, ReceiptRow
from torg_marketplace.storage.money_models import HoldRow, VaultRow
from torg_protocol.ids import JobId, LeaseId
from torg_protocol.messages import Accepted as AcceptedBody
from torg_protocol.messages import (
    Acknowledge,
    CheckpointRef,
    CheckpointStored,
    Declined,
    Exited,
    LeaseEvent,
    LeaseEventBody,
    Released,
    Reported,
    Started,
    Stop,
)
from torg_protocol.states import LIVE_LEASE_STATES, OPEN_JOB_STATES, EndReason, JobState, LeaseState
from torg_protocol.usage import OutputFile, SignedReceipt, verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
_ENDINGS = [
    *[(EndReason.COMPLETED, 0)] * 5,
    (EndReason.FAILED_EXIT, 1),
    (EndReason.OOM, None),
    (EndReason.MAX_DURATION, None),  # a lie, most of the time
]
_RELEASES = [EndReason.DRAINED, EndReason.PREEMPTED, EndReason.HOST_PROTECTION, EndReason.START_FAILED]


@dataclass
class SimulatedNode:
    """The node's agent with its journal: what it holds, and which events are not acknowledged yet."""

    node: Node
    chance: random.Random
    online: bool = False
    journal: dict[LeaseId, list[LeaseEvent]] = field(default_factory=dict)
    said: Counter[LeaseId] = field(default_factory=Counter)
    stops: dict[LeaseId, EndReason] = field(default_factory=dict)

    async def step(self) -> None:
        if not self.online:
            if self.chance.random() < 0.3:
                await self._come_back()
            return
        if self.chance.random() < 0.06:
            await self._vanish(forgets=self.chance.random() < 0.3)
            return
        self._read()
        for lease_id, held in list(self.node.held.items()):
            if self.chance.random() < 0.7:
                self._work(lease_id, held)
        await self._talk()
        if self.chance.random() < 0.8:
            await self.node.heartbeat(draining=self.chance.random() < 0.05)

    async def settle_down(self) -> None:
        """Comes back and says everything that is left to say."""
        if not self.online:
            await self._come_back()
        self._read()
        await self._talk()
        await self.node.heartbeat()

    async def _come_back(self) -> None:
        self.online = True
        welcome = await self.node.connect()
        for item in welcome.leases:
            if item.directive == "abandon":
                self._drop(item.lease_id)
            else:
                self._acknowledged(item.lease_id, item.acknowledged)

    async def _vanish(self, *, forgets: bool) -> None:
        self.online = False
        if forgets:
            for lease_id in list(self.node.held):
                self._drop(lease_id)
        if self.chance.random() < 0.5:
            await self.node.disconnect()
        else:
            self.node.world.links.disconnect(self.node.id)  # nobody notices yet

    def _read(self) -> None:
        for message in self.node.read():
            if isinstance(message, Stop):
                self.stops[message.lease_id] = message.reason
        for lease_id in list(self.journal):
            if lease_id not in self.node.held:
                self._drop(lease_id)

    def _work(self, lease_id: LeaseId, held: Held) -> None:
        now_ms = self.node.world.clock.now_ms()
        match held.state:
            case LeaseState.GRANTED:
                accepts = self.chance.random() < 0.9
                self._say(lease_id, AcceptedBody() if accepts else Declined(detail="no"))
                held.state = LeaseState.PREPARING if accepts else LeaseState.RELEASED
            case LeaseState.PREPARING if self.chance.random() < 0.9:
                held.state, held.started_at_ms = LeaseState.RUNNING, now_ms
                self._say(lease_id, self._started(now_ms))
            case LeaseState.PREPARING:
                self._release(lease_id, held, EndReason.START_FAILED)
            case LeaseState.RUNNING | LeaseState.STOPPING:
                self._run(lease_id, held)
            case _:
                pass  # waits for its receipt

    def _run(self, lease_id: LeaseId, held: Held) -> None:
        if lease_id in self.stops:
            self._end(lease_id, held, self.stops[lease_id], None)
            return
        dice = self.chance.random()
        if dice < 0.2 and held.grant.spec.checkpoint.enabled:
            self._say(lease_id, self._checkpoint(lease_id, held))
        elif dice < 0.4:
            self._say(lease_id, self.node.claim(held=held))
        elif dice < 0.65:
            self._end(lease_id, held, *self.chance.choice(_ENDINGS))
        elif dice < 0.7:
            self._release(lease_id, held, self.chance.choice(_RELEASES))

    def _end(self, lease_id: LeaseId, held: Held, reason: EndReason, exit_code: int | None) -> None:
        now_ms = self.node.world.clock.now_ms()
        if held.started_at_ms:
            self._say(
                lease_id,
                Exited(reason=reason, exit_code=exit_code, started_at_ms=held.started_at_ms, finished_at_ms=now_ms),
            )
            self._say(lease_id, self.node.claim(held=held, final=True))
        blob = self.node.world.blobs.put(f"result of {lease_id}".encode())
        output = OutputFile(path="model.safetensors", digest=blob.digest, size_bytes=blob.size_bytes)
        self._say(lease_id, Reported(reason=reason, exit_code=exit_code, outputs=(output,)))
        held.state = LeaseState.REPORTED

    def _release(self, lease_id: LeaseId, held: Held, reason: EndReason) -> None:
        self._say(lease_id, Released(reason=reason))
        held.state = LeaseState.RELEASED

    def _say(self, lease_id: LeaseId, body: LeaseEventBody) -> None:
        self.said[lease_id] += 1
        event = LeaseEvent(
            lease_id=lease_id,
            fence=self.node.held[lease_id].grant.fence,
            sequence=self.said[lease_id],
            at_ms=self.node.world.clock.now_ms(),
            body=body,
        )
        self.journal.setdefault(lease_id, []).append(event)

    async def _talk(self) -> None:
        """Sends what is not acknowledged, in order; some of it twice, and sometimes the line goes dead half-way."""
        for lease_id, events in list(self.journal.items()):
            for event in list(events):
                if self.chance.random() < 0.1:
                    break
                for _ in range(2 if self.chance.random() < 0.1 else 1):
                    answer = await on_lease_event(self.node.world.market, self.node.id, event)
                if isinstance(answer, Acknowledge):
                    self._acknowledged(lease_id, answer.sequence)
        self._read()

    def _acknowledged(self, lease_id: LeaseId, sequence: int) -> None:
        events = self.journal.get(lease_id, [])
        self.journal[lease_id] = [event for event in events if event.sequence > sequence]

    def _drop(self, lease_id: LeaseId) -> None:
        self.node.held.pop(lease_id, None)
        self.journal.pop(lease_id, None)
        self.stops.pop(lease_id, None)

    def _started(self, now_ms: int) -> Started:
        return Started(started_at_ms=now_ms, image_digest="sha256:" + "1" * 64, executor="fake", isolation="sandbox")

    def _checkpoint(self, lease_id: LeaseId, held: Held) -> CheckpointStored:
        now_ms = self.node.world.clock.now_ms()
        ref = CheckpointRef(
            name=f"at-{now_ms}",
            blob=self.node.world.blobs.put(f"checkpoint {lease_id} {now_ms}".encode()),
            useful_ms=now_ms - held.started_at_ms,
            written_at_ms=now_ms,
        )
        return CheckpointStored(checkpoint=ref)


@dataclass
class Simulation:
    world: World
    chance: random.Random
    nodes: list[SimulatedNode]
    clients: list[Client]
    jobs: list[tuple[Client, JobId]] = field(default_factory=list)

    async def step(self) -> None:
        world, dice = self.world, self.chance.random()
        world.advance(ms=self.chance.randrange(200, 9_000))
        if dice < 0.15:
            await self._submit()
        elif dice < 0.19 and self.jobs:
            await self._cancel()
        elif dice < 0.20:
            await self._restart()
        for node in self.chance.sample(self.nodes, len(self.nodes)):
            await node.step()
        await match_pending(world.market)
        await sweep(world.market)
        await self._verify()
        await self._settle()

    async def wind_down(self) -> None:
        """Everybody is well again; what is open is cancelled; time passes until nothing is left to do."""
        self.world.chain.down = False
        self.world.chain.lose_next = self.world.chain.answer_lost_next = 0
        for client, job_id in self.jobs:
            if (await client.job(job_id)).state in {JobState.QUEUED, JobState.LEASED}:
                await client.cancel(job_id)
        for _ in range(40):
            self.world.advance(seconds=20)
            for node in self.nodes:
                await node.settle_down()
                for lease_id, held in list(node.node.held.items()):
                    node._work(lease_id, held)
            await sweep(self.world.market)
            await self._verify()
            self.world.chain.expire_blockhashes()
            await settle_due(self.world.market, hurry=True)
            await advance_settlements(self.world.market)

    async def _submit(self) -> None:
        client = self.chance.choice(self.clients)
        members: dict[str, Any] = {
            "checkpoint": {"enabled": self.chance.random() < 0.7},
            "lease_grace": f"{self.chance.choice([15, 60, 300])}s",
            "retry": {"max_attempts": self.chance.randrange(1, 5), "on_failure": self.chance.randrange(0, 2)},
            "limits": {"max_duration": f"{self.chance.choice([20, 300])}s", "queue_timeout": "120s"},
        }
        measured = self.chance.random() < 0.3
        raw = metric_spec(self.world, **members) if measured else spec(**members)
        job = await client.submit(raw, key=f"key-{len(self.jobs)}")
        self.jobs.append((client, job.job_id))

    async def _cancel(self) -> None:
        client, job_id = self.chance.choice(self.jobs)
        if (await client.job(job_id)).state in {JobState.QUEUED, JobState.LEASED}:
            await client.cancel(job_id)

    async def _restart(self) -> None:
        """The marketplace is killed and comes back after a while; all connections are gone."""
        self.world.advance(seconds=self.chance.choice([1, 100, 4_000]))
        for node in self.nodes:
            node.online = False
            self.world.links.disconnect(node.node.id)
        await on_startup(self.world.market)

    async def _verify(self) -> None:
        answers: list[Measurement | EvaluationFailed] = [
            Measurement({"accuracy": "0.97"}),
            Measurement({"accuracy": "0.5"}),
            Measurement(detail="unreadable"),
            EvaluationFailed("no sandbox"),
        ]
        script = self.world.evaluator.script
        script.extend(self.chance.choices(answers, weights=[6, 1, 1, 2], k=20))
        await verify_pending(self.world.market)
        script.clear()

    async def _settle(self) -> None:
        chain = self.world.chain
        chain.down = self.chance.random() < 0.1
        chain.lose_next = self.chance.random() < 0.1
        chain.answer_lost_next = self.chance.random() < 0.1
        chain.height += self.chance.randrange(0, 40)
        with suppress(ChainUnavailable):  # the worker logs it and comes back
            await settle_due(self.world.market, hurry=self.chance.random() < 0.2)
            await advance_settlements(self.world.market)


async def start_simulation(world: World, seed: int, *, nodes: int = 4, clients: int = 2) -> Simulation:
    chance = random.Random(seed)
    simulated = [
        SimulatedNode(make_node(world, price=PRICE + number, slots=chance.randrange(1, 3)), chance)
        for number in range(nodes)
    ]
    people = [await make_client(world, deposit=10**12) for _ in range(clients)]
    for node in simulated:
        await node._come_back()
    return Simulation(world, chance, simulated, people)


async def broken_promises(unit: Unit) -> list[str]:
    """What must hold after every step, whatever happened."""
    session, broken = unit.session, []
    jobs = {job.job_id: job for job in await session.scalars(select(JobRow))}
    leases = (await session.scalars(select(LeaseRow))).all()
    allocated = Counter(await session.scalars(select(AllocationRow.lease_id)))
    live = [lease for lease in leases if lease.state in LIVE_LEASE_STATES]
    live_of = Counter(lease.job_id for lease in live)
    for lease in live:
        job = jobs[lease.job_id]
        if job.state != JobState.LEASED and not (job.state == JobState.CANCELLED and job.cancel_requested_at_ms):
            broken.append(f"{lease.lease_id} lives, its job is {job.state}")
        if allocated[lease.lease_id] != lease.billable_gpus:
            broken.append(f"{lease.lease_id} lives on {allocated[lease.lease_id]} units")
    if set(allocated) - {lease.lease_id for lease in live}:
        broken.append("units are allocated to leases that ended")
    for job in jobs.values():
        if live_of[job.job_id] != (job.state == JobState.LEASED) and not job.cancel_requested_at_ms:
            broken.append(f"{job.job_id} is {job.state} with {live_of[job.job_id]} live leases")
        if job.closed_at_ms and (job.state in OPEN_JOB_STATES or live_of[job.job_id]):
            broken.append(f"{job.job_id} is closed too early")
    return broken + await _broken_money(unit, jobs)


async def _broken_money(unit: Unit, jobs: dict[str, JobRow]) -> list[str]:
    session = unit.session
    broken = await ledger.problems(session)
    holds = {hold.job_id: hold for hold in await session.scalars(select(HoldRow))}
    open_maximum: Counter[str] = Counter()
    for job in jobs.values():
        if holds[job.job_id].open == (job.closed_at_ms is not None):
            broken.append(f"{job.job_id} and its hold disagree")
        if job.closed_at_ms is None:
            open_maximum[job.vault] += job.max_amount
        billed = await session.scalar(select(func.sum(LeaseRow.amount)).where(LeaseRow.job_id == job.job_id)) or 0
        if billed > job.max_amount:
            broken.append(f"{job.job_id} costs {billed} of at most {job.max_amount}")
        if job.closed_at_ms is not None and holds[job.job_id].billed != billed:
            broken.append(f"{job.job_id}: leases say {billed}, the hold {holds[job.job_id].billed}")
    for vault in await session.scalars(select(VaultRow)):
        if vault.open_maximum != open_maximum[vault.address]:
            broken.append(f"{vault.address}: open maximum {vault.open_maximum}, jobs {open_maximum[vault.address]}")
    return broken


async def receipt_problems(unit: Unit) -> list[str]:
    problems = []
    for row in await unit.session.scalars(select(ReceiptRow)):
        signed = SignedReceipt.model_validate(row.signed)
        problems += verify_receipt(signed, marketplace=unit.market.public_key)
    undecided = select(LeaseRow.lease_id).where(LeaseRow.decided_at_ms.is_(None), LeaseRow.ended_at_ms.is_not(None))
    without = select(LeaseRow.lease_id).where(
        LeaseRow.decided_at_ms.is_not(None), LeaseRow.lease_id.not_in(select(ReceiptRow.lease_id))
    )
    problems += [f"{lease_id} has no receipt" for lease_id in await unit.session.scalars(without)]
    return problems + [f"{lease_id} is undecided" for lease_id in await unit.session.scalars(undecided)]
