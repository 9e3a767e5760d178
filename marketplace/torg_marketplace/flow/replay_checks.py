"""Checks: one segment of a lease, who executed it again, what they made of it, and what that says of the lease and of each of them.

open -> answers, one after the other (nodes; we ourselves as the last resort, and before anybody is blamed) -> a verdict
Nodes that answered are paid with it, or, outvoted, have failed an audit themselves. Everything stays as evidence.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from sqlalchemy import select

import torg_marketplace.replay_segment as script
from torg_marketplace.flow.collateral import put_stake_behind
from torg_marketplace.flow.ending import decide_reported
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.segments import segments_of_lease
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.flow.verifiers import ask_a_node
from torg_marketplace.ports import EvaluationFailed, Replayer, TookTooLong
from torg_marketplace.rules.replay import (
    Answer,
    Ask,
    Distance,
    Segment,
    can_be_planted,
    is_outvoted,
    longest_replay_ms,
    next_step,
    over_after_ms,
    replay_impossible,
)
from torg_marketplace.storage.audit_models import ReplayAnswerRow, ReplayCheckRow
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.ids import Digest, LeaseId
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import CheckpointRef
from torg_protocol.states import OPEN_JOB_STATES, EndReason, LeaseState
from torg_protocol.usage import OutputFile, VerdictSummary

log = logging.getLogger(__name__)
AUDIT, PLANTED = "audit", "planted"
OPEN, ANSWERED, NOTHING = "open", "answered", "none"
NODES_ASKED_OF_A_CHECK = 5  # of one check: some come to nothing
_PERMILLE = 1000


@dataclass(frozen=True, slots=True)
class Looked:
    """What is looked at. `unplanted`: segments of which a node knows that their answer is not known. `late`: there is no time left to wait for
    nodes."""

    lease_id: LeaseId
    spec: JobSpec
    model: Digest | None
    claimed_ms: dict[int, int]  # by number of the segment
    unplanted: frozenset[int]
    late: bool


async def check_segment(market: Market, looked: Looked, segment: Segment) -> VerdictSummary | None:
    """The verdict on one segment; None: a node is executing it. Safe to repeat. Raises EvaluationFailed."""
    check_id, took_ms = await _open(market, looked, segment), looked.claimed_ms[segment.number]
    is_unplanted, policy = segment.number in looked.unplanted, market.policy
    here_below_ms = max(policy.replay_here_below_ms, policy.unplanted_here_below_ms if is_unplanted else 0)
    while True:
        found, asked, waits = await answers_so_far(market, check_id)
        by_nodes = not looked.late and (took_ms >= here_below_ms or asked > 0)
        over_elsewhere = asked > 0 and await _time_was_over_elsewhere(market, check_id, took_ms)
        step = next_step(segment, found, policy.unplanted_owners if is_unplanted else 1)
        if isinstance(step, VerdictSummary):
            await close_check(market, check_id, step)
            return step
        if step is None:
            raise EvaluationFailed(f"{segment.words}: replays disagree")
        if step is Ask.NODE and by_nodes and waits:
            return None
        may_ask = step is Ask.NODE and by_nodes and asked < NODES_ASKED_OF_A_CHECK and not over_elsewhere
        if may_ask and await ask_a_node(market, check_id, segment, took_ms):
            return None
        try:
            await _answer_ourselves(market, check_id, looked, segment, over_elsewhere=over_elsewhere)
        except EvaluationFailed:
            if not asked and not looked.late and await ask_a_node(market, check_id, segment, took_ms):
                return None  # it looked short, and was beyond us
            step = next_step(segment, found)
            if not isinstance(step, VerdictSummary):
                raise
            await close_check(
                market, check_id, step
            )  # no second owner, and it is beyond us: one node's word is all that there is
            return step


async def on_replay_reported(unit: Unit, job: JobRow, lease: LeaseRow) -> None:
    """A node has handed over what it made of a segment: whoever waits for it looks again. Nobody does any more: it is paid."""
    lease.verify_at_ms = None
    answer = (await unit.session.scalars(select(ReplayAnswerRow).where(ReplayAnswerRow.job_id == job.job_id))).one()
    check = await unit.session.get_one(ReplayCheckRow, answer.check_id)
    if check.verdict:
        answer.state, answer.answered_at_ms = NOTHING, unit.now_ms
        await decide_reported(unit, lease, job, _of_verifier("passed", "nobody waited for it any more"))
        return
    looked = await unit.session.get_one(LeaseRow, check.lease_id)
    if looked.verify_at_ms is not None:
        looked.verify_at_ms = unit.now_ms
    unit.wake("verify")


async def give_up_checks(unit: Unit, lease: LeaseRow, detail: str) -> None:
    """A lease is decided without its replays: nobody is blamed, and who executed something is paid."""
    query = select(ReplayCheckRow).where(
        ReplayCheckRow.lease_id == lease.lease_id, ReplayCheckRow.verdict == "", ReplayCheckRow.purpose == AUDIT
    )
    for check in (await unit.session.scalars(query)).all():
        await _decide(unit, check, replay_impossible(detail))


def segment_of(check: ReplayCheckRow) -> Segment:
    start, end = (None if ref is None else CheckpointRef.model_validate(ref) for ref in (check.start, check.end))
    return Segment(check.segment, start, end)


async def measure(replayer: Replayer, check: ReplayCheckRow, answer: Digest) -> Distance:
    """How far an answer is from what it should be."""
    segment = segment_of(check)
    if check.known is not None:
        return await replayer.compare(Segment(segment.number, segment.start, None), Digest(check.known), answer)
    return await replayer.compare(segment, Digest(check.model) if check.model else None, answer)


async def _open(market: Market, looked: Looked, segment: Segment) -> str:
    async with market.transaction() as unit:
        known = select(ReplayCheckRow.check_id).where(
            ReplayCheckRow.lease_id == looked.lease_id,
            ReplayCheckRow.segment == segment.number,
            ReplayCheckRow.purpose == AUDIT,
        )
        if (check_id := await unit.session.scalar(known)) is not None:
            return check_id
        row = _check(unit, looked.lease_id, AUDIT, segment, looked.model)
        return row.check_id


def _check(unit: Unit, lease_id: str, purpose: str, segment: Segment, model: Digest | None) -> ReplayCheckRow:
    row = ReplayCheckRow(
        check_id=unit.new_id("check"),
        lease_id=lease_id,
        purpose=purpose,
        segment=segment.number,
        start=None if segment.start is None else segment.start.wire(),
        end=None if segment.end is None else segment.end.wire(),
        model=model,
        verdict="",
        created_at_ms=unit.now_ms,
    )
    unit.session.add(row)
    return row


async def answers_so_far(market: Market, check_id: str) -> tuple[list[Answer], int, bool]:
    """All that came, in their order, those that are new compared; how many nodes were asked; whether one is still at it."""
    async with market.reading() as unit:
        check = await unit.session.get_one(ReplayCheckRow, check_id)
        handed = await _handed_over(unit, check_id)
    for answer_id, weights in handed.items():
        distance = Distance(None, detail="it came to nothing")
        if weights is not None:
            if market.replayer is None:
                raise EvaluationFailed("this marketplace cannot compare segments any more")
            distance = await measure(market.replayer, check, weights)
        await _note(market, answer_id, weights, distance)
    async with market.reading() as unit:
        rows = await answers_of(unit, check_id)
    found = [Answer(distance_of(row), by_node=row.node_id is not None) for row in rows if row.state == ANSWERED]
    asked = sum(row.node_id is not None for row in rows)
    return found, asked, any(row.state == OPEN for row in rows)


async def _handed_over(unit: Unit, check_id: str) -> dict[str, Digest | None]:
    """Of open answers whose lease is over: the weights; None where there are none."""
    found: dict[str, Digest | None] = {}
    for row in await answers_of(unit, check_id):
        if row.state != OPEN or row.lease_id is None:
            continue
        lease = await unit.session.get_one(LeaseRow, row.lease_id)
        job = await job_row(unit, lease.job_id)
        if lease.state == LeaseState.REPORTED and job.state in OPEN_JOB_STATES:
            files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
            found[row.answer_id] = files.get(script.ANSWER)
        elif lease.ended_at_ms is not None:
            found[row.answer_id] = None
    return found


async def _note(market: Market, answer_id: str, weights: Digest | None, distance: Distance) -> None:
    async with market.transaction() as unit:
        row = await unit.session.get_one(ReplayAnswerRow, answer_id, with_for_update=True)
        row.state = NOTHING if weights is None else ANSWERED
        row.answer, row.distance, row.bit_equal = weights, _text(distance), distance.bit_equal
        row.detail, row.answered_at_ms = distance.detail[:2_000], unit.now_ms
        if weights is not None and row.lease_id is not None:
            check = await unit.session.get_one(ReplayCheckRow, row.check_id)
            looked = await unit.session.get_one(LeaseRow, check.lease_id)
            lease = await unit.session.get_one(LeaseRow, row.lease_id)
            await put_stake_behind(unit, lease, await job_row(unit, looked.job_id))


async def _time_was_over_elsewhere(market: Market, check_id: str, took_ms: int) -> bool:
    """Whether a node of another owner was at the segment for all the time that it may take, and did not come to its end."""
    seen_ms = longest_replay_ms(took_ms) - market.policy.usage_skew_ms  # its word alone is nothing
    query = select(LeaseRow).join(ReplayAnswerRow, ReplayAnswerRow.lease_id == LeaseRow.lease_id)
    query = query.where(
        ReplayAnswerRow.check_id == check_id,
        LeaseRow.reason == EndReason.MAX_DURATION,
        LeaseRow.ended_at_ms - LeaseRow.started_at_ms >= seen_ms,
    )
    async with market.reading() as unit:
        return (await unit.session.scalars(query.limit(1))).first() is not None


async def _answer_ourselves(
    market: Market, check_id: str, looked: Looked, segment: Segment, *, over_elsewhere: bool
) -> None:
    """Our clock blames nobody by itself: only where another owner's node was not there in the same time. Raises EvaluationFailed."""
    if market.replayer is None:
        raise EvaluationFailed("this marketplace cannot execute segments again any more")
    limit_ms = over_after_ms(looked.spec, looked.claimed_ms[segment.number])
    try:
        distance = await market.replayer.replay(looked.spec, replace(segment, over_after_ms=limit_ms), looked.model)
    except TookTooLong as late:
        if not over_elsewhere:
            raise
        distance = Distance(None, detail=f"{late.message}, nor was another owner's node")
    async with market.transaction() as unit:
        unit.session.add(
            ReplayAnswerRow(
                answer_id=unit.new_id("replay"),
                check_id=check_id,
                state=ANSWERED,
                distance=_text(distance),
                bit_equal=distance.bit_equal,
                detail=distance.detail[:2_000],
                created_at_ms=unit.now_ms,
                answered_at_ms=unit.now_ms,
            )
        )


async def close_check(market: Market, check_id: str, verdict: VerdictSummary) -> None:
    async with market.transaction() as unit:
        check = await unit.session.get_one(ReplayCheckRow, check_id, with_for_update=True)
        if not check.verdict:
            await _decide(unit, check, verdict)
            await _perhaps_plant(unit, check)


async def _decide(unit: Unit, check: ReplayCheckRow, verdict: VerdictSummary) -> None:
    check.verdict = verdict.result if verdict.result in ("passed", "failed") else "void"
    check.detail, check.decided_at_ms = verdict.detail, unit.now_ms
    for row in await answers_of(unit, check.check_id):
        if row.state != ANSWERED or row.lease_id is None:
            continue
        lease = await unit.session.get_one(LeaseRow, row.lease_id, with_for_update=True)
        if lease.decided_at_ms is not None:
            continue
        row.outvoted = is_outvoted(Answer(distance_of(row), by_node=True), verdict)
        words = f"its replay {'contradicts the others' if row.outvoted else 'counted'}: {check.detail}"
        summary = _of_verifier("failed" if row.outvoted else "passed", words)
        await decide_reported(unit, lease, await job_row(unit, lease.job_id), summary)


async def _perhaps_plant(unit: Unit, check: ReplayCheckRow) -> None:
    """Now and then nodes get a segment to execute whose answer we know (flow/planted.py)."""
    if check.purpose != AUDIT or check.verdict != "passed":
        return
    lease = await unit.session.get_one(LeaseRow, check.lease_id)
    if not can_be_planted(await segments_of_lease(unit, lease), check.segment):
        return
    by_nodes = any(row.node_id is not None for row in await answers_of(unit, check.check_id))
    if by_nodes and unit.market.random.bits(64) % _PERMILLE < unit.policy.planted_permille:
        _check(unit, check.lease_id, PLANTED, segment_of(check), Digest(check.model) if check.model else None)


def _of_verifier(result: str, detail: str) -> VerdictSummary:
    return VerdictSummary(policy="replay", result=result, detail=detail[:2_000])


def distance_of(row: ReplayAnswerRow) -> Distance:
    return Distance(None if row.distance is None else float(row.distance), row.bit_equal, row.detail)


def _text(distance: Distance) -> str | None:
    return None if distance.value is None else repr(distance.value)


async def answers_of(unit: Unit, check_id: str) -> list[ReplayAnswerRow]:
    """In their order."""
    query = select(ReplayAnswerRow).where(ReplayAnswerRow.check_id == check_id)
    return list(await unit.session.scalars(query.order_by(ReplayAnswerRow.answer_id)))
