"""The segments of a lease of a job that is verified by replay, and which of them are looked at: the same from its end to its verdict."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from torg_marketplace.flow.audit import Drawn, draw_audit
from torg_marketplace.flow.rows import grant_of, spec_of
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.replay import Segment, claimed_ms, may_be_beyond_us, segments_of
from torg_marketplace.rules.verification import not_drawn
from torg_marketplace.storage.models import JobRow, LeaseEventRow, LeaseRow
from torg_protocol.jobspec import VerifyReplay
from torg_protocol.messages import CheckpointRef, CheckpointStored, LeaseEvent
from torg_protocol.states import EndReason


@dataclass(frozen=True, slots=True)
class DrawnSegments:
    """`chosen` empty: the lease was not drawn for an audit. `claimed_ms`: by number of the segment."""

    every: list[Segment]
    claimed_ms: dict[int, int]
    chosen: tuple[Segment, ...]
    drawn: Drawn


async def draw_segments(unit: Unit, lease: LeaseRow, job: JobRow, policy: VerifyReplay) -> DrawnSegments:
    """Of a lease that has ended, so that all of it is stored. Safe to repeat."""
    stored = await _stored_checkpoints(unit, lease)
    every = _segments(lease, stored)
    took = {segment.number: claimed_ms(segment, lease.billed_ms + lease.unbilled_ms) for segment in every}
    beyond = [number for number, claimed in took.items() if may_be_beyond_us(claimed)]
    drawn = await draw_audit(unit, lease, job, [item.blob.digest for item in stored], always=bool(beyond))
    chosen: tuple[Segment, ...] = ()
    if drawn.audited:
        dice = drawn.dice
        numbers = {*dice.choose(len(every), policy.segments), *(beyond[i] for i in dice.choose(len(beyond), 1))}
        chosen = tuple(every[number] for number in sorted(numbers))
    return DrawnSegments(every, took, chosen, drawn)


async def look_first(unit: Unit, lease: LeaseRow, job: JobRow, policy: VerifyReplay) -> bool:
    """Whether a lease that hands its checkpoints over waits for a verdict before anybody goes on from them. Not when it is not drawn: then that
    is its verdict."""
    found = await draw_segments(unit, lease, job, policy)
    if not found.chosen:
        lease.verdict = not_drawn(policy.policy, found.drawn.permille, found.drawn.shown).wire()
        lease.stake = 0  # free for others: nothing of this one will be looked at
        return False
    lease.verify_at_ms = unit.now_ms
    lease.verify_deadline_ms = unit.now_ms + unit.policy.verification_window_s * 1000
    unit.wake("verify")
    return True


async def segments_of_lease(unit: Unit, lease: LeaseRow) -> list[Segment]:
    return _segments(lease, await _stored_checkpoints(unit, lease))


def is_handed_over(lease: LeaseRow, job: JobRow) -> bool:
    """Whether it has ended before its job did, and a verdict on it is one on the checkpoints that others go on from."""
    return spec_of(job).verify.policy == "replay" and lease.ended_for is not EndReason.COMPLETED


def _segments(lease: LeaseRow, stored: list[CheckpointRef]) -> list[Segment]:
    every = segments_of(grant_of(lease).resume_from, stored)
    led_to_outputs = lease.ended_for in (EndReason.COMPLETED, EndReason.VERIFICATION_REJECTED)
    return every if led_to_outputs else every[:-1]


async def _stored_checkpoints(unit: Unit, lease: LeaseRow) -> list[CheckpointRef]:
    """In their order, which is what the lease has committed to."""
    query = (
        select(LeaseEventRow)
        .where(LeaseEventRow.lease_id == lease.lease_id, LeaseEventRow.refusal.is_(None))
        .order_by(LeaseEventRow.sequence)
    )
    bodies = [LeaseEvent.model_validate(row.event).body for row in await unit.session.scalars(query)]
    return [body.checkpoint for body in bodies if isinstance(body, CheckpointStored)]
