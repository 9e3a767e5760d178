"""Prove: nodes are asked for proofs of their hardware at times that they cannot foretell, also while they work.

A window holds all units of all connected nodes of one operator (the payout address), one time in four, and after a slow answer, of everybody who claims the
same class:
all get ready first, then all nonces leave at once, so that no machine answers for another. The verifier's clock alone counts.

open_windows -> on_ready -> (launch) -> on_committed, twice -> rows drawn -> on_opened -> flow/judge_proof.py
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.orm import load_only

from torg_host.hardware_proof.opening import blocks_of
from torg_marketplace.flow.rows import live_leases, offer_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.proof import (
    LANES_CHECKED,
    ROWS_CHECKED,
    Finding,
    ProofRecord,
    UnitRecord,
    learned_tolerance,
    tasks_for,
)
from torg_marketplace.rules.walk_limit import WalkSample, learned_share, share_of
from torg_marketplace.storage.models import NodeRow
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import NodeId
from torg_protocol.proofs import ProofAsked, ProofChallenge, ProofCommitted, ProofOpened, ProofReady, ProofWanted
from torg_protocol.states import Liveness, NodeState

_DAY_MS = 86_400_000
_ONE_IN_CLASS_WIDE = 4  # of the windows
_LEARN_FROM = 200  # newest proofs of a class
OPEN_STATES = ("wanted", "ready", "challenged", "asked", "opened")

_LEARNT_FROM_COLUMNS = (  # without the answers themselves, which are long
    HardwareProofRow.finding,
    HardwareProofRow.challenge,
    HardwareProofRow.chain_at_ms,
    HardwareProofRow.walk_at_ms,
)

ProofAnswer = ProofReady | ProofCommitted | ProofOpened


async def open_windows(market: Market) -> int:
    """Asks whoever is due. Returns the number of proofs wanted."""
    if not market.policy.proof_every_ms:
        return 0
    async with market.reading() as unit:
        due_or_new = select(NodeRow.node_id).where(NodeRow.connected, NodeRow.proof_due_ms <= unit.now_ms).limit(1)
        if await unit.session.scalar(due_or_new) is None:
            return 0
    async with market.transaction() as unit:
        connected = await _provable(unit)
        _schedule_newcomers(unit, connected)
        busy_proving = set(
            await unit.session.scalars(
                select(HardwareProofRow.node_id).where(HardwareProofRow.state.in_(OPEN_STATES)).distinct()
            )
        )
        free = [node for node in connected if node.node_id not in busy_proving]
        due = [node for node in free if 0 < node.proof_due_ms <= unit.now_ms]
        if not due:
            return 0
        return await _open_window(unit, _window_of(unit, due[0], free))


async def on_proof_answer(market: Market, node_id: NodeId, answer: ProofAnswer) -> None:
    """The moment of arrival is taken first: waiting for the database is not the node's time. Raises NotFound, Conflict, Invalid."""
    at_ms = market.clock.now_ms()
    async with market.transaction() as unit:
        row = await unit.session.get(HardwareProofRow, answer.proof_id, with_for_update=True)
        if row is None or row.node_id != node_id:
            raise NotFound("no such proof of yours", code="proof_unknown", field="proof_id", value=answer.proof_id)
        match answer:
            case ProofReady():
                await _on_ready(unit, row)
            case ProofCommitted():
                _on_committed(unit, row, answer, at_ms)
            case ProofOpened():
                _on_opened(unit, row, answer, at_ms)


async def advance_windows(market: Market) -> None:
    """Launches windows whose stragglers are out of time, and gives up what is overdue. Safe at any rate."""
    async with market.reading() as unit:
        if await unit.session.scalar(_overdue(unit).limit(1)) is None:
            return
    async with market.transaction() as unit:
        overdue = (await unit.session.scalars(_overdue(unit))).all()
        stragglers = [row for row in overdue if row.state != "ready"]
        windows = {row.window_id for row in overdue if row.state in ("wanted", "ready")}
        for row in stragglers:
            row.state = "opened"  # judged as it is: without an answer
            unit.wake("proof")
        for window_id in sorted(windows):
            await _launch_if_all_ready(unit, window_id)


def _overdue(unit: Unit) -> Select[HardwareProofRow]:
    return select(HardwareProofRow).where(
        HardwareProofRow.state.in_(OPEN_STATES[:4]), HardwareProofRow.due_at_ms <= unit.now_ms
    )


def record_of(node: NodeRow) -> ProofRecord:
    return ProofRecord.model_validate(node.proof)


async def _provable(unit: Unit) -> Sequence[NodeRow]:
    """By the database: their connections may be another process's."""
    query = select(NodeRow).where(
        NodeRow.connected,
        NodeRow.liveness == Liveness.ALIVE,
        NodeRow.state.in_([NodeState.ACTIVE, NodeState.DRAINING]),
    )
    return (await unit.session.scalars(query.order_by(NodeRow.proof_due_ms))).all()


def _schedule_newcomers(unit: Unit, nodes: Sequence[NodeRow]) -> None:
    for node in nodes:
        if node.proof_due_ms == 0:
            node.proof_due_ms = unit.now_ms + int(chance(unit) * unit.policy.proof_first_within_ms) + 1


def _window_of(unit: Unit, due: NodeRow, free: Sequence[NodeRow]) -> list[NodeRow]:
    operator, gpu_class = offer_of(due).payout_address, offer_of(due).inventory.gpu_class
    # Who was slow once may have shared a card with somebody: the same company again, until that is settled.
    class_wide = record_of(due).last == "slow" or unit.market.random.bits(16) % _ONE_IN_CLASS_WIDE == 0
    return [
        node
        for node in free
        if (offer := offer_of(node)).payout_address == operator
        or (class_wide and offer.inventory.gpu_class == gpu_class)
    ]


async def _open_window(unit: Unit, nodes: Sequence[NodeRow]) -> int:
    window_id, count = unit.new_id("window"), 0
    for node in nodes:
        node.proof_due_ms = unit.now_ms + unit.policy.proof_every_ms  # until it is judged
        busy = bool(await live_leases(unit, node_id=node.id))
        gpus = len(offer_of(node).inventory.gpus)
        for name in [f"gpu:{number}" for number in range(gpus)] or ["cpu"]:
            row = HardwareProofRow(
                proof_id=unit.new_id("proof"),
                window_id=window_id,
                node_id=node.node_id,
                unit=name,
                state="wanted",
                busy=busy,
                wanted_at_ms=unit.now_ms,
                due_at_ms=unit.now_ms + unit.policy.proof_ready_within_ms,
            )
            unit.session.add(row)
            wanted = ProofWanted(proof_id=row.proof_id, unit=name, ready_within_ms=unit.policy.proof_ready_within_ms)
            unit.send(node.id, wanted)
            count += 1
    return count


async def _on_ready(unit: Unit, row: HardwareProofRow) -> None:
    if row.state == "wanted":
        row.state = "ready"
        await _launch_if_all_ready(unit, row.window_id)


async def _launch_if_all_ready(unit: Unit, window_id: str) -> None:
    """The nonces of a window are drawn and sent together."""
    await unit.session.flush()
    rows = (
        await unit.session.scalars(
            select(HardwareProofRow).where(HardwareProofRow.window_id == window_id).order_by(HardwareProofRow.proof_id)
        )
    ).all()
    if any(row.state == "wanted" for row in rows):
        return
    for row in rows:
        if row.state == "ready":
            await _challenge(unit, row)


async def _challenge(unit: Unit, row: HardwareProofRow) -> None:
    node = await unit.session.get_one(NodeRow, row.node_id)
    established = record_of(node).units.get(row.unit, UnitRecord())
    gpus = offer_of(node).inventory.gpus
    gpu_bytes = gpus[int(row.unit.partition(":")[2])].vram_bytes if row.unit.startswith("gpu:") else 0
    chain, walk = tasks_for(established.gops, gpu_bytes)
    challenge = ProofChallenge(
        proof_id=row.proof_id,
        unit=row.unit,
        nonce=unit.market.random.bits(256).to_bytes(32, "big").hex(),
        matrix_seed=_matrix_seed(unit),
        chain=chain,
        walk=walk,
        answer_within_ms=unit.policy.proof_answer_within_ms,
    )
    row.state, row.challenge = "challenged", challenge.wire()
    row.established_gops = established.gops
    seen = await _seen_of_class(unit, established.gops)
    row.tolerance_permille = int(1000 * learned_tolerance([established.gops / one.gops for one in seen]))
    share = learned_share([WalkSample(one.owner, one.walk_share) for one in seen])
    row.walk_permille = None if share is None else math.ceil(1000 * share)
    row.challenged_at_ms = unit.now_ms
    row.due_at_ms = unit.now_ms + unit.policy.proof_answer_within_ms
    unit.send(node.id, challenge)


def _on_committed(unit: Unit, row: HardwareProofRow, answer: ProofCommitted, at_ms: int) -> None:
    if row.state != "challenged":
        raise Conflict("not asked for now", code="proof_not_open", field="proof_id", value=row.proof_id)
    row.arithmetic = answer.arithmetic
    if answer.phase == "chain" and row.chain_at_ms is None and answer.root is not None:
        row.chain_at_ms, row.root = at_ms, answer.root
    elif answer.phase == "walk" and row.chain_at_ms is not None and answer.lanes:
        row.walk_at_ms, row.lanes = at_ms, answer.lanes
        _ask(unit, row)
    else:
        raise Invalid("commit to the chain, then to the walk", code="proof_phase", field="phase", value=answer.phase)


def _ask(unit: Unit, row: HardwareProofRow) -> None:
    """Rows are drawn now, after everything is committed."""
    challenge = ProofChallenge.model_validate(row.challenge)
    row.rows = _draw(unit, challenge.chain.rows, ROWS_CHECKED)
    row.lanes_checked = _draw(unit, challenge.walk.lanes, LANES_CHECKED)
    row.state = "asked"
    row.due_at_ms = unit.now_ms + unit.policy.proof_ready_within_ms
    unit.send(NodeId(row.node_id), ProofAsked(proof_id=row.proof_id, blocks=blocks_of(row.rows)))


def _on_opened(unit: Unit, row: HardwareProofRow, answer: ProofOpened, at_ms: int) -> None:
    if row.state != "asked":
        raise Conflict("not asked for now", code="proof_not_open", field="proof_id", value=row.proof_id)
    row.opened_at_ms, row.opening = at_ms, [block.wire() for block in answer.blocks]
    row.state = "opened"
    unit.wake("proof")


def _draw(unit: Unit, population: int, count: int) -> list[int]:
    """Different numbers below `population`, evenly: 64 random bits each, reduced (the bias is below 2^-36)."""
    drawn: set[int] = set()
    while len(drawn) < min(count, population):
        drawn.add(unit.market.random.bits(64) % population)
    return sorted(drawn)


def _matrix_seed(unit: Unit) -> str:
    """One per day and marketplace."""
    return hashlib.sha256(f"{unit.market.public_key} {unit.now_ms // _DAY_MS}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A right answer of a unit of some class."""

    owner: str
    gops: float
    walk_share: float


async def _seen_of_class(unit: Unit, gops: int) -> list[_Seen]:
    """The newest of a class."""
    if not gops:
        return []
    query = (
        select(NodeRow.offer["payout_address"].as_string(), HardwareProofRow)
        .join(NodeRow, NodeRow.node_id == HardwareProofRow.node_id)
        .options(load_only(*_LEARNT_FROM_COLUMNS))
        .where(HardwareProofRow.established_gops == gops, HardwareProofRow.state == "judged")
        .where(HardwareProofRow.busy.is_(False))
        .order_by(HardwareProofRow.wanted_at_ms.desc())
        .limit(_LEARN_FROM)
    )
    found = []
    for owner, row in await unit.session.execute(query):
        measured = Finding.model_validate(row.finding).gops
        if measured > 0 and row.challenge is not None and row.walk_at_ms is not None:
            walk = ProofChallenge.model_validate(row.challenge).walk
            share = share_of(walk, row.walk_at_ms - (row.chain_at_ms or 0), measured)
            found.append(_Seen(owner, measured, share))
    return found


def chance(unit: Unit) -> float:
    """In [0, 1)."""
    return unit.market.random.bits(53) / (1 << 53)
