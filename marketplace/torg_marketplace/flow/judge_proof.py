"""Judge proofs: rows and walks are recomputed outside of any transaction, the finding changes what is known of the node.

Everything that a judgement rests on is in the proof's row: `replay` judges it again from there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools

import numpy as np
from sqlalchemy import select

from torg_host.hardware_proof.arithmetic import NumpyArithmetic
from torg_host.hardware_proof.chain import replay_rows
from torg_host.hardware_proof.opening import opened_digests
from torg_host.hardware_proof.walk import replay_lanes
from torg_marketplace.flow.operate import left_after
from torg_marketplace.flow.prove import chance, record_of
from torg_marketplace.flow.rows import node_row, offer_of
from torg_marketplace.flow.suspension import release, standing, suspend
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.proof import (
    Evidence,
    Finding,
    ProofRecord,
    due_again_ms,
    false_claim,
    judge_proof,
    remember,
)
from torg_marketplace.storage.models import NodeRow
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import Digest, NodeId
from torg_protocol.proofs import ChainTask, OpenedBlock, ProofChallenge, ProofJudged, WalkTask
from torg_protocol.states import NodeState

_NOTHING_ASKED = (ChainTask(rows=256, width=64, rounds=1), WalkTask(rows=16, width=64, passes=1, lanes=1, steps=1))


async def judge_opened(market: Market) -> int:
    """Judges what is opened or given up, one after the other. Returns how many."""
    async with market.reading() as unit:
        query = select(HardwareProofRow).where(HardwareProofRow.state == "opened").order_by(HardwareProofRow.due_at_ms)
        waiting = (await unit.session.scalars(query)).all()
        unit.session.expunge_all()
    for row in waiting:
        found = await asyncio.to_thread(judge_row, row)
        async with market.transaction() as unit:
            await _apply(unit, row.proof_id, found)
    return len(waiting)


async def replay(market: Market, proof_id: str) -> tuple[Finding, Finding]:
    """What was found then, and what the kept evidence gives now. Raises NotFound."""
    async with market.reading() as unit:
        row = await unit.session.get(HardwareProofRow, proof_id)
        if row is None or row.state != "judged":
            raise NotFound("no judged proof of that id", code="proof_unknown", field="proof_id", value=proof_id)
        unit.session.expunge_all()
    return Finding.model_validate(row.finding), await asyncio.to_thread(judge_row, row)


async def proofs_of(market: Market, node_id: str) -> list[dict[str, object]]:
    """The newest hundred of a node, newest first. Raises NotFound node_unknown."""
    async with market.reading() as unit:
        await node_row(unit, node_id)
        query = select(HardwareProofRow).where(HardwareProofRow.node_id == node_id)
        rows = (await unit.session.scalars(query.order_by(HardwareProofRow.wanted_at_ms.desc()).limit(100))).all()
        return [
            {"proof_id": row.proof_id, "unit": row.unit, "state": row.state, "at_ms": row.wanted_at_ms, **row.finding}
            for row in rows
        ]


async def lift_ban(market: Market, node_id: str) -> str | None:
    """The operator's word that a quarantine or ban was wrong or is over; the node starts unproven. Returns what it stays suspended for,
    in words. Raises NotFound; Conflict node_suspended when only a person suspended or banned it, which no proof says anything about."""
    async with market.transaction() as unit:
        node = await node_row(unit, node_id)
        if node.state == NodeState.SUSPENDED and standing(node, "proof") is None:
            raise Conflict(
                "the operator suspended this node, not a proof of its hardware",
                code="node_suspended",
                field="node",
                value=node_id,
                hint="torg-marketplace node-resume, or unban node, takes that back",
            )
        node.proof, node.proof_due_ms = {}, unit.now_ms
        if standing(node, "proof") is not None:
            await release(unit, node, "proof", "lifted by the operator")
        unit.touch(node.id)
        return left_after(node).get("note")


def judge_row(row: HardwareProofRow) -> Finding:
    """Takes the time of ROWS_CHECKED rows and LANES_CHECKED walks; needs nothing but the row."""
    walk_share = row.walk_permille / 1000 if row.walk_permille is not None else None
    return judge_proof(evidence_of(row), row.established_gops, row.tolerance_permille / 1000, walk_share)


def evidence_of(row: HardwareProofRow) -> Evidence:
    if row.challenge is None or row.challenged_at_ms is None:
        chain, walk = _NOTHING_ASKED
        return Evidence(
            chain=chain, walk=walk, chain_ms=None, walk_ms=None, wrong_rows=0, wrong_lanes=0, opened=False,
            busy=row.busy, was_ready=False,
        )  # fmt: skip
    challenge = ProofChallenge.model_validate(row.challenge)
    answered = row.chain_at_ms is not None and row.walk_at_ms is not None
    wrong_rows = wrong_lanes = 0
    if answered and row.opened_at_ms is not None:
        wrong_rows, wrong_lanes = _wrong_rows(row, challenge), _wrong_lanes(row, challenge)
    return Evidence(
        chain=challenge.chain,
        walk=challenge.walk,
        chain_ms=row.chain_at_ms - row.challenged_at_ms if row.chain_at_ms is not None else None,
        walk_ms=row.walk_at_ms - (row.chain_at_ms or 0) if row.walk_at_ms is not None else None,
        wrong_rows=wrong_rows,
        wrong_lanes=wrong_lanes,
        opened=row.opened_at_ms is not None,
        busy=row.busy,
    )


def _wrong_rows(row: HardwareProofRow, challenge: ProofChallenge) -> int:
    """An opening that does not belong to the commitment makes all of them wrong."""
    opened = [OpenedBlock.model_validate(block) for block in row.opening]
    said = opened_digests(challenge.chain, Digest(row.root or ""), opened, row.rows)
    if said is None:
        return len(row.rows)
    factor = _factor(challenge.shared_seed("B"), challenge.chain.width)
    right = replay_rows(challenge.chain, challenge.seed("X", NodeId(row.node_id)), factor, row.rows)
    return int(np.count_nonzero(right != np.array([said[number] for number in row.rows], dtype=np.int64)))


def _wrong_lanes(row: HardwareProofRow, challenge: ProofChallenge) -> int:
    try:
        data = base64.b64decode(row.lanes or "", validate=True)
    except binascii.Error:
        return len(row.lanes_checked)
    if len(data) != 4 * challenge.walk.lanes:
        return len(row.lanes_checked)
    said = np.frombuffer(data, dtype="<u4")[row.lanes_checked]
    factor = _factor(challenge.shared_seed("F"), challenge.walk.width)
    right = replay_lanes(challenge.walk, challenge.seed("space", NodeId(row.node_id)), factor, row.lanes_checked)
    return int(np.count_nonzero(right != said))


@functools.lru_cache(maxsize=4)
def _factor(seed: bytes, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Of a day: making it costs more than replaying rows."""
    return NumpyArithmetic().factor(seed, width)


async def _apply(unit: Unit, proof_id: str, found: Finding) -> None:
    row = await unit.session.get_one(HardwareProofRow, proof_id, with_for_update=True)
    if row.state != "opened":
        return
    row.state, row.judged_at_ms, row.finding = "judged", unit.now_ms, found.model_dump(mode="json")
    node = await node_row(unit, row.node_id)
    record = remember(record_of(node), row.unit, found, arithmetic=row.arithmetic, busy=row.busy, now_ms=unit.now_ms)
    record = _doubt_name(node, row.unit, record)
    node.proof = record.model_dump(mode="json")
    node.proof_due_ms = unit.now_ms + due_again_ms(record, found, unit.policy.proof_every_ms, chance(unit))
    if record.state == "banned":
        await suspend(unit, node, "proof", record.detail)
    unit.touch(node.id)
    unit.wake("match")
    unit.send(
        node.id,
        ProofJudged(proof_id=proof_id, passed=found.result == "passed", detail=record.detail, status=record.status()),
    )


def _doubt_name(node: NodeRow, unit_name: str, record: ProofRecord) -> ProofRecord:
    """A GPU that is far slower than any of its name is a lie, though its digests are right."""
    claim = offer_of(node).inventory.gpu_class
    known = record.units.get(unit_name)
    doubt = false_claim(claim, known) if known is not None else None
    return record if doubt is None else record.model_copy(update={"strikes": record.strikes + 1, "detail": doubt})
