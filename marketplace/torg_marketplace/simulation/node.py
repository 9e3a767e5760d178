"""A simulated node: agent and journal, its faults and lies, and what is true about each lease it ever held."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field
from typing import Any

from solders.keypair import Keypair

from torg_marketplace.flow.lease_events import blobs_named_by, on_lease_event
from torg_marketplace.flow.nodes import on_disconnect, on_heartbeat, on_hello
from torg_marketplace.flow.receipts import on_receipt_signed
from torg_marketplace.simulation.volumes import snapshots
from torg_marketplace.simulation.world import BAD, GOOD, UNREADABLE, World
from torg_protocol.errors import TorgError
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.messages import (
    Abandon,
    Accepted,
    Acknowledge,
    CheckpointRef,
    CheckpointStored,
    Declined,
    Exited,
    Grant,
    Granted,
    Heartbeat,
    HeldLease,
    Hello,
    LeaseEvent,
    LeaseEventBody,
    ReceiptIssued,
    ReceiptSigned,
    Refused,
    Released,
    Reported,
    Started,
    Stop,
    UsageClaimed,
)
from torg_protocol.money import cost
from torg_protocol.offers import GpuInfo, Inventory, Offer, SignedOffer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import OutputFile, SignedReceipt, UsageRecord
from torg_protocol.versions import PROTOCOL_VERSION

_ENDINGS = [
    *[(EndReason.COMPLETED, 0)] * 6,
    (EndReason.FAILED_EXIT, 1),
    (EndReason.FAILED_EXIT, 1),
    (EndReason.OOM, None),
]
_RELEASES = [
    EndReason.DRAINED,
    EndReason.PREEMPTED,
    EndReason.HOST_PROTECTION,
    EndReason.EXPOSURE_LIMIT,
    EndReason.START_FAILED,
]
_LIES = [
    EndReason(name) for name in ("max_duration", "budget", "cancelled", "gang_ended", "node_lost", "queue_deadline")
]


class Character(enum.StrEnum):
    HONEST = "honest"
    SKEWED = "skewed"  # honest, and its clock is wrong
    LIAR = "liar"  # claims time, reasons and results that are not true


@dataclass
class Truth:
    """What happened in one lease, by the clock of the world. `seen_*` are when the marketplace took the news."""

    grant: Grant
    started_ms: int | None = None
    ended_ms: int | None = None
    seen_started_ms: int | None = None
    seen_ended_ms: int | None = None
    checkpoint_ms: int = 0  # useful time of the newest checkpoint that the marketplace has taken
    reconnected: bool = False  # there was a time in which the marketplace could not see it
    lied: bool = False
    good: bool = True  # what its output is


@dataclass
class Held:
    """A lease in the node's journal."""

    grant: Grant
    state: LeaseState = LeaseState.GRANTED
    said: int = 0
    unacknowledged: list[LeaseEvent] = field(default_factory=list)
    claims: list[UsageRecord] = field(default_factory=list)
    stop: EndReason | None = None


@dataclass
class SimulatedNode:
    world: World
    key: Keypair
    offer: Offer
    character: Character
    skew_ms: int = 0
    protocol_version: int = PROTOCOL_VERSION
    online: bool = False
    connected_ms: int = 0  # its newest connection, by the marketplace's clock
    draining: bool = False
    held: dict[LeaseId, Held] = field(default_factory=dict)
    truth: dict[LeaseId, Truth] = field(default_factory=dict)
    ghosts: list[LeaseEvent] = field(default_factory=list)  # said before, to be said again when nobody wants to hear it
    last_heard_ms: int = -1  # when the marketplace last heard of it
    said_draining: bool = False  # what it last told the marketplace
    stalled_until_ms: int = 0

    @property
    def id(self) -> NodeId:
        return self.offer.node

    # --- what a step may do --------------------------------------------------------------------------------------------

    async def act(self, chance: random.Random) -> None:
        """One round of the agent's life."""
        if not self.online:
            await self.come_back()
            return
        if self.world.clock.time_ms < self.stalled_until_ms:
            return
        self._read()
        for held in list(self.held.values()):
            for _ in range(chance.choice([1, 2])):
                self._work(held, chance)
        await self._talk(chance)
        await self._heartbeat()

    async def settle_down(self, chance: random.Random) -> None:
        """Well again: finishes what it holds and says all that is left to say."""
        self.stalled_until_ms, self.draining = 0, False
        if not self.online:
            await self.come_back()
        self._read()
        for held in list(self.held.values()):
            self._work(held, chance, calm=True)
        await self._talk(None)
        await self._heartbeat()

    async def crash(self, *, forgets: bool, noticed: bool) -> None:
        """The machine goes down, with its containers; with `forgets` the journal goes too."""
        now_ms = self.world.clock.time_ms
        for lease_id, held in list(self.held.items()):
            truth = self.truth[lease_id]
            if truth.started_ms is not None and truth.ended_ms is None:
                truth.ended_ms = now_ms
            if forgets:
                self._drop(lease_id)
            elif held.state in {LeaseState.RUNNING, LeaseState.STOPPING, LeaseState.PREPARING}:
                self._release(held, EndReason.HOST_PROTECTION)
        await self._leave(noticed=noticed)

    async def cut_off(self, *, noticed: bool) -> None:
        """The line is dead; containers run on."""
        await self._leave(noticed=noticed)

    def stall(self, for_ms: int) -> None:
        """Connected, and silent."""
        self.stalled_until_ms = self.world.clock.time_ms + for_ms

    async def haunt(self, chance: random.Random) -> list[str]:
        """Says something again that is over, or under a fence that is not its own. Returns what was taken, which nothing may be."""
        if not self.ghosts:
            return []
        event = chance.choice([each for each in self.ghosts if each.lease_id in self.held] or self.ghosts)
        held = self.held.get(event.lease_id)
        if held is not None and chance.random() < 0.7:
            wrong = held.grant.fence + chance.choice([-1, 1])
            event = self._event(held, event.body, sequence=held.said + 1).model_copy(update={"fence": wrong})
        elif held is not None:
            return []
        answer = await self._tell(event)
        return [f"{self.id} was believed with a stale {event.body.kind}"] if _is_fresh(answer, held, event) else []

    async def impersonate(self, victim: SimulatedNode) -> list[str]:
        """Speaks about a lease of somebody else."""
        for held in victim.held.values():
            event = self._event(held, Released(reason=EndReason.HOST_PROTECTION), sequence=held.said + 1)
            answer = await self._tell(event)
            if isinstance(answer, Acknowledge):
                return [f"{self.id} was believed about a lease of {victim.id}"]
        return []

    # --- connection ----------------------------------------------------------------------------------------------------

    async def come_back(self) -> None:
        self.world.links.connect(self.id)
        hello = Hello(
            protocol_version=self.protocol_version,
            node_version="simulated",
            offer=SignedOffer(offer=self.offer, signature=self.offer.sign(self.key)),
            draining=self.draining,
            leases=self._held_leases(),
        )
        try:
            async with self.world.market.transaction() as unit:
                welcome = await on_hello(unit, self.id, hello)
        except TorgError:  # suspended, say: it tries again later
            self.world.links.disconnect(self.id)
            return
        self.online, self.connected_ms = True, self.world.clock.time_ms
        self._heard()
        for truth in self.truth.values():
            truth.reconnected = True
        for item in welcome.leases:
            if item.directive == "abandon":
                self._drop(item.lease_id)
            else:
                self._acknowledged(item.lease_id, item.acknowledged)

    async def _leave(self, *, noticed: bool) -> None:
        self.online = False
        self.world.links.disconnect(self.id)
        if noticed:
            async with self.world.market.transaction() as unit:
                await on_disconnect(unit, self.id)

    async def _heartbeat(self) -> None:
        beat = Heartbeat(at_ms=self._clock_ms(), leases=self._held_leases(), draining=self.draining)
        async with self.world.market.transaction() as unit:
            await on_heartbeat(unit, self.id, beat)
        self._heard()

    def _heard(self) -> None:
        self.last_heard_ms, self.said_draining = self.world.clock.time_ms, self.draining

    def _held_leases(self) -> tuple[HeldLease, ...]:
        return tuple(
            HeldLease(lease_id=lease_id, fence=held.grant.fence, state=held.state)
            for lease_id, held in self.held.items()
        )

    def _read(self) -> None:
        for message in self.world.links.take_all(self.id):
            match message:
                case Granted() if message.signed.grant.lease_id not in self.truth:
                    grant = message.signed.grant
                    self.held[grant.lease_id] = Held(grant)
                    self.truth[grant.lease_id] = Truth(grant)
                case Stop() if message.lease_id in self.held:
                    self.held[message.lease_id].stop = message.reason
                case Abandon():
                    self._drop(message.lease_id)
                case ReceiptIssued():
                    self._drop(message.receipt.receipt.lease_id)
                case _:
                    pass

    # --- work ----------------------------------------------------------------------------------------------------------

    def _work(self, held: Held, chance: random.Random, *, calm: bool = False) -> None:
        if held.state is LeaseState.GRANTED:
            accepts = calm or chance.random() < 0.9
            code = "" if accepts else chance.choice(["quiet_hours", "no_room", "kind_denied"])
            self._say(held, Accepted() if accepts else Declined(detail="no", code=code))
            held.state = LeaseState.PREPARING if accepts else LeaseState.RELEASED
        elif held.state is LeaseState.PREPARING:
            if held.stop is not None:
                self._end(held, held.stop, None, chance)
            elif not calm and chance.random() < 0.2 and self._lies(chance, self.truth[held.grant.lease_id]):
                self._end(held, EndReason.COMPLETED, 0, chance)  # done, and never begun
            elif calm or chance.random() < 0.9:
                self._start(held, chance)
            else:
                self._release(held, EndReason.START_FAILED)
        elif held.state is LeaseState.RUNNING:
            self._run(held, chance, calm=calm)

    def _start(self, held: Held, chance: random.Random) -> None:
        truth = self.truth[held.grant.lease_id]
        truth.started_ms = self.world.clock.time_ms
        held.state = LeaseState.RUNNING
        early_ms = chance.randrange(1_000, 60_000) if self._lies(chance, truth) else 0
        body = Started(
            started_at_ms=self._clock_ms() - early_ms,
            image_digest="sha256:" + "1" * 64,
            executor="fake",
            isolation="sandbox",
        )
        self._say(held, body)

    def _run(self, held: Held, chance: random.Random, *, calm: bool) -> None:
        dice, ran_ms = chance.random(), self._ran_ms(held)
        if held.stop is not None:
            if held.grant.spec.checkpoint.enabled and chance.random() < 0.7:
                self._checkpoint(held, chance)
            if held.stop is EndReason.PREEMPTED and chance.random() < 0.7:
                self._release(held, held.stop)
            else:
                self._end(held, held.stop, None, chance)
        elif ran_ms >= held.grant.max_duration_ms:
            self._end(held, EndReason.MAX_DURATION, None, chance)
        elif calm:
            self._end(held, EndReason.COMPLETED, 0, chance)
        elif (
            dice < 0.2 and held.grant.spec.checkpoint.enabled and (held.grant.gang is None or not held.grant.gang.rank)
        ):
            self._checkpoint(held, chance)
        elif dice < 0.35:
            self._say(held, self._claim(held, chance, final=False))
        elif dice < 0.6:
            truth = self.truth[held.grant.lease_id]
            reason, code = (chance.choice(_LIES), None) if self._lies(chance, truth) else chance.choice(_ENDINGS)
            self._end(held, reason, code, chance)
        elif dice < 0.66:
            self._release(held, chance.choice(_RELEASES))

    def _end(self, held: Held, reason: EndReason, exit_code: int | None, chance: random.Random) -> None:
        truth = self.truth[held.grant.lease_id]
        if truth.started_ms is not None:
            truth.ended_ms = truth.ended_ms or self.world.clock.time_ms
            late_ms = chance.randrange(1_000, 60_000) if self._lies(chance, truth) else 0
            started_ms = truth.started_ms + self.skew_ms
            exited = Exited(
                reason=reason,
                exit_code=exit_code,
                started_at_ms=started_ms,
                finished_at_ms=truth.ended_ms + self.skew_ms + late_ms,
            )
            self._say(held, exited)
            self._say(held, self._claim(held, chance, final=True))
        truth.good = chance.random() < (0.5 if self.character is Character.LIAR else 0.95)
        content = GOOD if truth.good else chance.choice([BAD, UNREADABLE])
        # Replicas of a quorum come out the same where they are right; who lies, lies alone.
        same = truth.good and reason is EndReason.COMPLETED and held.grant.spec.replicas > 1
        of = held.grant.job_id if same else held.grant.lease_id
        blob = self.world.blobs.put(content + f" result of {of}".encode())
        output = OutputFile(path="model.safetensors", digest=blob.digest, size_bytes=blob.size_bytes)
        self._say(held, Reported(reason=reason, exit_code=exit_code, outputs=(output,)))
        held.state = LeaseState.REPORTED

    def _release(self, held: Held, reason: EndReason) -> None:
        truth = self.truth[held.grant.lease_id]
        if truth.started_ms is not None and truth.ended_ms is None:
            truth.ended_ms = self.world.clock.time_ms
        self._say(held, Released(reason=reason))
        held.state = LeaseState.RELEASED

    def _checkpoint(self, held: Held, chance: random.Random) -> None:
        now_ms, truth = self._clock_ms(), self.truth[held.grant.lease_id]
        useful_ms = self._ran_ms(held) + (chance.randrange(60_000) if self._lies(chance, truth) else 0)
        blob = self.world.blobs.put(f"checkpoint {held.grant.lease_id} {now_ms}".encode())
        ref = CheckpointRef(name=f"at-{now_ms}", blob=blob, useful_ms=useful_ms, written_at_ms=now_ms)
        self._say(held, CheckpointStored(checkpoint=ref))

    def _claim(self, held: Held, chance: random.Random, *, final: bool) -> UsageClaimed:
        """The next record, from where the last claim ended."""
        truth, now_ms = self.truth[held.grant.lease_id], self._clock_ms()
        start_ms = held.claims[-1].end_ms if held.claims else (truth.started_ms or 0) + self.skew_ms
        useful_ms = max(0, now_ms - start_ms) + (chance.randrange(60_000) if self._lies(chance, truth) else 0)
        grant = held.grant
        record = UsageRecord(
            lease_id=grant.lease_id,
            sequence=len(held.claims) + 1,
            job_id=grant.job_id,
            attempt=grant.attempt,
            node=self.id,
            vault=grant.commitment.vault,
            start_ms=start_ms,
            end_ms=start_ms + useful_ms,
            useful_ms=useful_ms,
            price_per_gpu_hour=grant.price_per_gpu_hour,
            billable_gpus=grant.billable_gpus,
            amount=cost(grant.price_per_gpu_hour, grant.billable_gpus, useful_ms),
            final=final,
        )
        held.claims.append(record)
        return UsageClaimed(record=record, node_signature=record.sign(self.key))

    def _lies(self, chance: random.Random, truth: Truth) -> bool:
        lies = self.character is Character.LIAR and chance.random() < 0.4
        truth.lied = truth.lied or lies
        return lies

    def _ran_ms(self, held: Held) -> int:
        started_ms = self.truth[held.grant.lease_id].started_ms
        return 0 if started_ms is None else self.world.clock.time_ms - started_ms

    def _clock_ms(self) -> int:
        return self.world.clock.time_ms + self.skew_ms

    # --- events --------------------------------------------------------------------------------------------------------

    def _say(self, held: Held, body: LeaseEventBody) -> None:
        for each in (body, *snapshots(self.world, held.grant, after=body)):
            held.said += 1
            held.unacknowledged.append(self._event(held, each, sequence=held.said))

    def _event(self, held: Held, body: LeaseEventBody, *, sequence: int) -> LeaseEvent:
        grant = held.grant
        return LeaseEvent(
            lease_id=grant.lease_id, fence=grant.fence, sequence=sequence, at_ms=self._clock_ms(), body=body
        )

    async def _talk(self, chance: random.Random | None) -> None:
        """Sends what is not acknowledged, in order; some of it twice, and sometimes the line or an answer gets lost half-way."""
        for lease_id, held in list(self.held.items()):
            for event in list(held.unacknowledged):
                dice = 1.0 if chance is None else chance.random()
                if dice < 0.08:
                    break
                answer = await self._tell(event)
                if dice < 0.16:
                    answer = await self._tell(event)
                if isinstance(answer, Acknowledge) and dice > 0.2:
                    self._acknowledged(lease_id, answer.sequence)
                if isinstance(answer, Refused) and answer.problem["code"] in {"lease_unknown", "lease_stale"}:
                    break
                if isinstance(answer, Refused) and answer.problem["code"] == "event_out_of_order":
                    self._acknowledged(lease_id, int(answer.problem["acknowledged"]))
                elif isinstance(answer, Refused):
                    self._acknowledged(lease_id, event.sequence)  # refused for good: it counts as taken
        self._read()

    async def _tell(self, event: LeaseEvent) -> Acknowledge | Refused:
        self.ghosts = [*self.ghosts[-20:], event]
        if blobs := [blob for _, blob in blobs_named_by(event.body)]:
            await self.world.blobs.sent_by(self.world.market, self.id, blobs)
        answer = await on_lease_event(self.world.market, self.id, event)
        truth = self.truth.get(event.lease_id)
        if isinstance(answer, Acknowledge) and truth is not None and event.fence == truth.grant.fence:
            self._note_seen(truth, event)
        return answer

    def _note_seen(self, truth: Truth, event: LeaseEvent) -> None:
        now_ms = self.world.clock.time_ms
        match event.body:
            case Started() if truth.seen_started_ms is None:
                truth.seen_started_ms = now_ms
            case Exited() | Reported() | Released() if truth.seen_ended_ms is None:
                truth.seen_ended_ms = now_ms
            case CheckpointStored():
                truth.checkpoint_ms = max(truth.checkpoint_ms, event.body.checkpoint.useful_ms)
            case _:
                pass

    def _acknowledged(self, lease_id: LeaseId, sequence: int) -> None:
        if (held := self.held.get(lease_id)) is not None:
            held.unacknowledged = [event for event in held.unacknowledged if event.sequence > sequence]

    def _drop(self, lease_id: LeaseId) -> None:
        held = self.held.pop(lease_id, None)
        truth = self.truth.get(lease_id)
        if held is not None and truth is not None and truth.started_ms is not None and truth.ended_ms is None:
            truth.ended_ms = self.world.clock.time_ms

    async def sign(self, signed: SignedReceipt) -> None:
        """Countersigns a receipt of its own."""
        receipt = signed.receipt
        message = ReceiptSigned(
            lease_id=receipt.lease_id, receipt_digest=receipt.digest, signature=receipt.sign(self.key)
        )
        async with self.world.market.transaction() as unit:
            await on_receipt_signed(unit, self.id, message)


def make_node(
    world: World, *, price: int, slots: int, gpus: int, character: Character, skew_ms: int = 0, **offer: Any
) -> SimulatedNode:
    key = world.randomness.keypair()
    cards = tuple(
        GpuInfo(uuid=f"GPU-{number}", model="RTX 4090", vram_bytes=24 << 30, compute_capability="8.9")
        for number in range(gpus)
    )
    inventory = Inventory(
        source="simulated",
        gpu_class="rtx-4090" if gpus else "cpu",
        gpus=cards,
        cpu_millis=4_000,
        memory_bytes=4 << 30,
        disk_bytes=20 << 30,
    )
    document = Offer(
        node=NodeId(str(key.pubkey())),
        sequence=1,
        marketplace=world.market.public_key,
        price_per_gpu_hour=price,
        slots=slots,
        inventory=inventory,
        executor="fake",
        isolation=("sandbox",),
        payout_address=str(world.randomness.keypair().pubkey()),
        max_unpaid=10**15,
        **offer,
    )
    return SimulatedNode(world, key, document, character, skew_ms)


def _is_fresh(answer: Acknowledge | Refused, held: Held | None, event: LeaseEvent) -> bool:
    """Whether the answer says that something new was taken. Acknowledging again what was taken before is right."""
    return isinstance(answer, Acknowledge) and held is not None and event.sequence > held.said
