"""What a simulated node does with the leases that it holds, and what it says of them: work, endings, claims and lies; and what is true about
each lease that it ever held."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field

from solders.keypair import Keypair

from torg_marketplace.simulation.volumes import snapshots
from torg_marketplace.simulation.world import BAD, GOOD, MADE_UP, UNREADABLE, World
from torg_protocol.ids import Digest, LeaseId, NodeId
from torg_protocol.messages import (
    Accepted,
    CheckpointRef,
    CheckpointStored,
    Declined,
    Exited,
    Grant,
    LeaseEvent,
    LeaseEventBody,
    Released,
    Reported,
    Started,
    UsageClaimed,
)
from torg_protocol.money import cost
from torg_protocol.offers import Offer
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import OutputFile, UsageRecord

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
    seen_sequence: int = 0  # of the newest event that the marketplace has taken
    taken: int = 0  # as above, or refused for good
    checkpoint_ms: int = 0  # useful time of the newest checkpoint that the marketplace has taken
    checkpoint: str | None = None  # its name
    exit_code: int | None = None  # as the marketplace was told it
    output: Digest | None = None  # of what it reported
    reconnected: bool = False  # there was a time in which the marketplace could not see it
    lied: bool = False
    good: bool = True  # what its output is
    made_up: bool | None = None  # whether its checkpoints are; None: it has none


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
class Worker:
    """A node as its jobs see it."""

    world: World
    key: Keypair
    offer: Offer
    character: Character
    skew_ms: int = 0
    truth: dict[LeaseId, Truth] = field(default_factory=dict)

    @property
    def id(self) -> NodeId:
        return self.offer.node

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
        if truth.made_up is None:
            truth.made_up = self.character is Character.LIAR and chance.random() < 0.5
        what = MADE_UP if truth.made_up else b"checkpoint"
        blob = self.world.blobs.put(what + f" {held.grant.lease_id} {now_ms}".encode())
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

    def _say(self, held: Held, body: LeaseEventBody) -> None:
        for each in (body, *snapshots(self.world, held.grant, after=body)):
            held.said += 1
            held.unacknowledged.append(self._event(held, each, sequence=held.said))

    def _event(self, held: Held, body: LeaseEventBody, *, sequence: int) -> LeaseEvent:
        grant = held.grant
        return LeaseEvent(
            lease_id=grant.lease_id, fence=grant.fence, sequence=sequence, at_ms=self._clock_ms(), body=body
        )
