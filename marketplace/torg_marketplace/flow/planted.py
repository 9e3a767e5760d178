"""Planted segments: a node executes one whose answer we know, and what it hands over says whether it executes what it is given.

Nothing about it tells: the checkpoint was written by the job itself, in our sandbox, two segments after an alteration that nobody sees; it comes
under the names, with the time and for the price of the real one; and never to an owner who was asked about the same lease before, who could compare.
"""

from __future__ import annotations

import logging

from sqlalchemy import select

from torg_marketplace.flow.blobs import note_upload, use_blob
from torg_marketplace.flow.replay_checks import (
    NODES_ASKED_OF_A_CHECK,
    PLANTED,
    answers_so_far,
    close_check,
    segment_of,
)
from torg_marketplace.flow.rows import job_row, spec_of
from torg_marketplace.flow.segments import segments_of_lease
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.verifiers import ask_a_node
from torg_marketplace.ports import EvaluationFailed, Planted
from torg_marketplace.rules.replay import Segment, can_be_planted, claimed_ms, next_step_of_planted, replay_impossible
from torg_marketplace.storage.audit_models import ReplayCheckRow
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.ids import Digest, JobId
from torg_protocol.jobspec import JobSpec
from torg_protocol.usage import VerdictSummary

log = logging.getLogger(__name__)


async def advance_planted(market: Market) -> None:
    """Segments whose answer we know: one after the other is prepared, given to nodes, judged. Safe to repeat."""
    async with market.reading() as unit:
        query = select(ReplayCheckRow.check_id).where(ReplayCheckRow.verdict == "", ReplayCheckRow.purpose == PLANTED)
        ids = (await unit.session.scalars(query.order_by(ReplayCheckRow.created_at_ms))).all()
    for check_id in ids:
        try:
            await _advance(market, check_id)
        except EvaluationFailed as failure:
            await close_check(market, check_id, replay_impossible(failure.message))


async def _advance(market: Market, check_id: str) -> None:
    async with market.reading() as unit:
        check = await unit.session.get_one(ReplayCheckRow, check_id)
        lease = await unit.session.get_one(LeaseRow, check.lease_id)
        spec, segment = spec_of(await job_row(unit, lease.job_id)), segment_of(check)
        every = await segments_of_lease(unit, lease)
        useful_ms = lease.billed_ms + lease.unbilled_ms
        is_over = unit.now_ms >= check.created_at_ms + market.policy.verification_window_s * 1000
    if check.known is None:
        if is_over or not can_be_planted(every, segment.number):  # the client's data may be deleted by now
            raise EvaluationFailed("it could not be prepared")
        planted = await _prepare(market, check, spec, every[segment.number - 1], segment)
        segment = Segment(segment.number, planted.start, segment.end)
    found, asked, waits = await answers_so_far(market, check_id)
    step = next_step_of_planted(segment, found)
    if isinstance(step, VerdictSummary):
        if step.result == "inconclusive":
            log.error("replay check %s: %s", check_id, step.detail)
        await close_check(market, check_id, step)
    elif is_over:
        raise EvaluationFailed("no node answered in time")
    elif not waits and asked < NODES_ASKED_OF_A_CHECK:
        await ask_a_node(market, check_id, segment, claimed_ms(segment, useful_ms))


async def _prepare(market: Market, check: ReplayCheckRow, spec: JobSpec, before: Segment, segment: Segment) -> Planted:
    if market.replayer is None:
        raise EvaluationFailed("this marketplace cannot execute segments any more")
    model = Digest(check.model) if check.model else None
    planted = await market.replayer.plant(spec, before, segment, model, market.random.bits(63))
    async with market.transaction() as unit:
        row = await unit.session.get_one(ReplayCheckRow, check.check_id)
        row.start, row.known = planted.start.wire(), planted.answer
        lease = await unit.session.get_one(LeaseRow, check.lease_id)
        for digest in (planted.start.blob.digest, planted.answer):  # they go when the job's other files go
            await use_blob(unit, digest, JobId(lease.job_id), client_may_read=False)
            await note_upload(unit, market.public_key, digest, 0)
        for piece in planted.pieces:
            await note_upload(unit, market.public_key, piece.digest, piece.size_bytes)
    return planted
