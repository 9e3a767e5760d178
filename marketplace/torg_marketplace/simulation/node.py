"""A simulated node: its agent, which comes, speaks and goes, and its faults. What it does with its leases is in `work.py`."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

from torg_marketplace.flow.crowd import Reads
from torg_marketplace.flow.lease_events import blobs_named_by, on_lease_event, on_lease_events
from torg_marketplace.flow.nodes import on_disconnect, on_hello
from torg_marketplace.flow.receipts import on_receipt_signed, read_receipts
from torg_marketplace.simulation.fetching import fetch_inputs
from torg_marketplace.simulation.work import Character, Held, Truth, Worker
from torg_marketplace.simulation.world import World
from torg_protocol.errors import TorgError
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.messages import (
    Abandon,
    Acknowledge,
    CheckpointStored,
    Exited,
    Granted,
    Heartbeat,
    HeldLease,
    Hello,
    LeaseEvent,
    ReceiptIssued,
    ReceiptSigned,
    Refused,
    Released,
    Reported,
    Started,
    Stop,
    Welcome,
)
from torg_protocol.offers import GpuInfo, Inventory, Offer, SignedOffer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import SignedReceipt
from torg_protocol.versions import PROTOCOL_VERSION

_NOT_TAKEN = {"lease_unknown", "lease_stale", "already_reported", "event_out_of_order"}  # others are refused for good


@dataclass
class SimulatedNode(Worker):
    protocol_version: int = PROTOCOL_VERSION
    online: bool = False
    connected_ms: int = 0  # its newest connection, by the marketplace's clock
    draining: bool = False
    held: dict[LeaseId, Held] = field(default_factory=dict)
    receipts: list[SignedReceipt] = field(default_factory=list)  # to be countersigned
    signed: set[LeaseId] = field(default_factory=set)  # whose receipts it has countersigned
    ghosts: list[LeaseEvent] = field(default_factory=list)  # said before, to be said again when nobody wants to hear it
    last_heard_ms: int = -1  # when the marketplace last heard of it
    has_gone: bool = True  # the marketplace knows that it is not connected
    said_draining: bool = False  # what it last told the marketplace
    stalled_until_ms: int = 0
    newest_said: int = 0  # number of the newest offer that was taken
    rounds_ms: list[int] = field(default_factory=list)  # when it heard, spoke and was heard, the last few times

    # --- what a step may do --------------------------------------------------------------------------------------------

    async def act(self, chance: random.Random, *, in_crowd: bool = False) -> None:
        """One round of the agent's life. In a crowd, where others do the same, it says all that it has to say in one go."""
        if not self.online:
            if chance.random() < 0.3:
                self._ask_other_prices(chance)
            if self._dice("old offer").random() < 0.5:
                await self._ask_old_price()
            await self.come_back()
            return
        if self.world.clock.time_ms < self.stalled_until_ms:
            return
        self._read()
        for held in list(self.held.values()):
            if held.state is LeaseState.PREPARING:
                await fetch_inputs(self.world, self.id, held.grant)
            for _ in range(chance.choice([1, 2])):
                self._work(held, chance)
        at_once = in_crowd or chance.random() < 0.15
        await (self._talk_at_once if at_once else self._talk)(chance)
        await self._sign_receipts()
        self._heartbeat()

    async def settle_down(self, chance: random.Random, *, in_crowd: bool) -> None:
        """Well again: finishes what it holds and says all that is left to say."""
        self.stalled_until_ms, self.draining = 0, False
        if not self.online:
            await self.come_back()
        self._read()
        for held in list(self.held.values()):
            self._work(held, chance, calm=True)
        await (self._talk_at_once if in_crowd else self._talk)(None)
        await self._sign_receipts()
        self._heartbeat()

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

    def _ask_other_prices(self, chance: random.Random) -> None:
        """From its next connection on. Leases that it holds keep theirs."""
        price = max(1, self.offer.price_per_gpu_hour * chance.choice([50, 90, 101, 200]) // 100)
        spot = chance.choice([None, price // 2, price // 3])
        self.offer = self.offer.model_copy(
            update={
                "sequence": self.offer.sequence + 1,
                "price_per_gpu_hour": price,
                "spot_price_per_gpu_hour": spot,
            }
        )

    async def _ask_old_price(self) -> None:
        """With the offer before its newest, from a backup perhaps, or with another one under the same number. No job may be sold for that."""
        if self.newest_said == 0:
            return
        number = self.newest_said - self._dice("older").randrange(2)
        older = {"sequence": number, "price_per_gpu_hour": 1, "spot_price_per_gpu_hour": None}
        if await self._hello(self.offer.model_copy(update=older)) is not None:
            raise AssertionError(f"{self.id} offered {self.newest_said}, and then {older}, which was taken")

    async def _hello(self, offer: Offer) -> Welcome | None:
        """None: it was refused."""
        self.world.links.connect(self.id)
        hello = Hello(
            protocol_version=self.protocol_version,
            node_version="simulated",
            offer=SignedOffer(offer=offer, signature=offer.sign(self.key)),
            draining=self.draining,
            leases=self._held_leases(),
        )
        try:
            async with self.world.market.transaction() as unit:
                return await on_hello(unit, self.id, hello)
        except TorgError:
            self.world.links.disconnect(self.id)
            return None

    async def come_back(self) -> None:
        welcome = await self._hello(self.offer)
        if welcome is None:  # suspended, say: it tries again later
            return
        self.newest_said = self.offer.sequence
        self.online, self.has_gone, self.connected_ms = True, False, self.world.clock.time_ms
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
            self.has_gone = True

    def rounds_since(self, at_ms: int) -> int:
        return sum(each_ms > at_ms for each_ms in self.rounds_ms)

    def _heartbeat(self) -> None:
        """Waits for `pulse.renew`, with those of others."""
        self.rounds_ms = [*self.rounds_ms[-9:], self.world.clock.time_ms]
        beat = Heartbeat(at_ms=self._clock_ms(), leases=self._held_leases(), draining=self.draining)
        self.world.pulse.beat(self.id, beat, self.world.clock.time_ms)
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
                    self.receipts.append(message.receipt)
                case _:
                    pass

    async def _talk(self, chance: random.Random | None) -> None:
        """Sends what is not acknowledged, in order; some of it twice, and sometimes the line or an answer gets lost half-way."""
        for held in list(self.held.values()):
            for event in self._ready(held, calm=chance is None):
                dice = 1.0 if chance is None else chance.random()
                if dice < 0.08:
                    break
                answer = await self._tell(event)
                if dice < 0.16:
                    answer = await self._tell(event)
                if not self._answered(event, answer, heard=dice > 0.2):
                    break
        self._read()

    async def _talk_at_once(self, chance: random.Random | None) -> None:
        """The same as one message after the other that the marketplace reads together: the line may break before some of them or before
        all answers, and all may be said twice."""
        events = [event for held in self.held.values() for event in self._ready(held, calm=chance is None)]
        if chance is not None and chance.random() < 0.1:
            events = events[: chance.randrange(len(events) + 1)]
        if chance is not None and len(events) > 1 and (other := self._dice("gap")).random() < 0.2:
            del events[other.randrange(len(events) - 1)]  # one got lost, and what comes after it did not
        if not events:
            return
        for _ in range(1 if chance is None else chance.choice([1, 1, 1, 1, 2])):
            answers = await self._tell_all(events)
        heard = chance is None or chance.random() > 0.05
        for event, answer in zip(events, answers, strict=True):
            self._answered(event, answer, heard=heard)
        self._read()

    def _ready(self, held: Held, *, calm: bool) -> list[LeaseEvent]:
        """What can be said now: a report waits until all that it names is uploaded, which takes a while."""
        events = list(held.unacknowledged)
        if events and not calm and self._dice(f"upload of {held.grant.lease_id}").random() < 0.4:
            return list(itertools.takewhile(lambda event: not isinstance(event.body, Reported), events))
        return events

    def _dice(self, about: str) -> random.Random:
        """Of its own, so that nothing else that a seed draws depends on it."""
        return random.Random(f"{about} at {self.world.clock.time_ms} of {self.id}")

    def _answered(self, event: LeaseEvent, answer: Acknowledge | Refused, *, heard: bool) -> bool:
        """Whether it is of use to go on with the events of this lease. An acknowledgement may not be heard."""
        if isinstance(answer, Acknowledge):
            if heard:
                self._acknowledged(event.lease_id, answer.sequence)
            return True
        match answer.problem["code"]:
            case "lease_unknown" | "lease_stale":
                return False
            case "event_out_of_order":
                self._acknowledged(event.lease_id, int(answer.problem["acknowledged"]))
            case _:
                self._acknowledged(event.lease_id, event.sequence)  # refused for good: it counts as taken
        return True

    async def _tell(self, event: LeaseEvent) -> Acknowledge | Refused:
        await self._about_to_tell(event)
        answer = await on_lease_event(self.world.market, self.id, event)
        self._note_answer(event, answer)
        return answer

    async def _tell_all(self, events: list[LeaseEvent]) -> list[Acknowledge | Refused]:
        for event in events:
            await self._about_to_tell(event)
        answers = await on_lease_events(self.world.market, self.id, events)
        for event, answer in zip(events, answers, strict=True):
            self._note_answer(event, answer)
        return answers

    async def _about_to_tell(self, event: LeaseEvent) -> None:
        self.ghosts = [*self.ghosts[-20:], event]
        if blobs := [blob for _, blob in blobs_named_by(event.body)]:
            await self.world.blobs.sent_by(self.world.market, self.id, blobs)

    def _note_answer(self, event: LeaseEvent, answer: Acknowledge | Refused) -> None:
        truth = self.truth.get(event.lease_id)
        if (answer.lease_id, answer.sequence) != (event.lease_id, event.sequence):
            raise AssertionError(f"{self.id} said {event.sequence} of {event.lease_id}, and was answered {answer}")
        if isinstance(answer, Refused) and answer.problem["code"] == "blob_missing":
            raise AssertionError(f"{self.id} has sent what it names of {event.lease_id}, and is told: {answer.problem}")
        if truth is None or event.fence != truth.grant.fence:
            return
        if isinstance(answer, Acknowledge) and event.sequence > truth.taken + 1:
            raise AssertionError(f"{event.sequence} of {event.lease_id} was taken after {truth.taken}")
        if isinstance(answer, Acknowledge) or answer.problem["code"] not in _NOT_TAKEN:
            truth.taken = max(truth.taken, event.sequence)
        if isinstance(answer, Acknowledge):
            self._note_seen(truth, event)

    def _note_seen(self, truth: Truth, event: LeaseEvent) -> None:
        if event.sequence <= truth.seen_sequence:
            return
        now_ms, truth.seen_sequence = self.world.clock.time_ms, event.sequence
        if isinstance(event.body, Exited | Reported):
            truth.exit_code = event.body.exit_code
        if isinstance(event.body, Reported):
            truth.output = event.body.outputs[0].digest
        match event.body:
            case Started() if truth.seen_started_ms is None:
                truth.seen_started_ms = now_ms
            case Exited() | Reported() | Released() if truth.seen_ended_ms is None:
                truth.seen_ended_ms = now_ms
            case CheckpointStored():
                truth.checkpoint_ms = max(truth.checkpoint_ms, event.body.checkpoint.useful_ms)
                truth.checkpoint = event.body.checkpoint.name
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

    async def _sign_receipts(self) -> None:
        receipts, self.receipts = [signed.receipt for signed in self.receipts], []
        signed = [
            ReceiptSigned(lease_id=each.lease_id, receipt_digest=each.digest, signature=each.sign(self.key))
            for each in receipts
        ]
        await asyncio.gather(*map(self._send_signature, signed))
        self.signed |= {each.lease_id for each in receipts}

    async def _send_signature(self, message: ReceiptSigned) -> None:
        await self.world.market.shared(
            lambda unit: on_receipt_signed(unit, self.id, message),
            stage="receipts",
            reads=[Reads(read_receipts, [message.lease_id])],
        )


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
