"""Proofs of hardware from the first question to what they change, with provers that really compute."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from sqlalchemy import select

from tests.support.actors import Node, join, make_client, make_node, spec
from tests.support.market import World
from tests.support.provers import CHAIN, WALK, Prover
from torg_marketplace.flow import prove
from torg_marketplace.flow.judge_proof import judge_opened, lift_ban, proofs_of, replay
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.prove import advance_windows, on_proof_answer, open_windows, record_of
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.views import node_view
from torg_marketplace.rules.walk_limit import LEAST_OWNERS
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.api import NodeView
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.messages import ToNode
from torg_protocol.proofs import (
    ChainTask,
    ProofAsked,
    ProofChallenge,
    ProofCommitted,
    ProofJudged,
    ProofOpened,
    ProofReady,
    ProofWanted,
    WalkTask,
)
from torg_protocol.states import LeaseState, NodeState


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks(gops: int, gpu_bytes: int) -> tuple[ChainTask, WalkTask]:
        del gops, gpu_bytes
        return CHAIN, WALK

    monkeypatch.setattr(prove, "tasks_for", tasks)


async def asked(world: World) -> int:
    """The window opens when its time has come."""
    await open_windows(world.market)
    world.advance(seconds=61)
    return await open_windows(world.market)


def proof_messages(node: Node) -> list[ToNode]:
    kinds = ProofWanted | ProofChallenge | ProofAsked | ProofJudged
    return [message for message in node.read() if isinstance(message, kinds)]


async def answer(world: World, node: Node, prover: Prover, *, chain_ms: int = 1_000, walk_ms: int = 100) -> None:
    """Takes what waits and answers it, until nothing is asked any more."""
    market, challenge = world.market, None
    while messages := proof_messages(node):
        for message in messages:
            match message:
                case ProofWanted():
                    await on_proof_answer(market, node.id, ProofReady(proof_id=message.proof_id))
                case ProofChallenge():
                    challenge = message
                    root, lanes = prover.root(message), prover.lanes(message)
                    world.advance(ms=chain_ms)
                    chain = ProofCommitted(proof_id=message.proof_id, phase="chain", root=root, arithmetic="numpy")
                    await on_proof_answer(market, node.id, chain)
                    world.advance(ms=walk_ms)
                    walked = ProofCommitted(proof_id=message.proof_id, phase="walk", lanes=lanes, arithmetic="numpy")
                    await on_proof_answer(market, node.id, walked)
                case ProofAsked():
                    assert challenge is not None
                    opened = ProofOpened(proof_id=message.proof_id, blocks=prover.open(challenge, message.blocks))
                    await on_proof_answer(market, node.id, opened)
                case _:
                    pass


async def view(world: World, node: Node) -> NodeView:
    async with world.market.reading() as unit:
        return await node_view(unit, node.id)


async def prove_once(
    world: World, node: Node, prover: Prover, *, chain_ms: int = 1_000, walk_ms: int = 100
) -> ProofJudged:
    world.advance(seconds=7_200)
    await node.heartbeat()
    assert await open_windows(world.market) == 1
    await answer(world, node, prover, chain_ms=chain_ms, walk_ms=walk_ms)
    assert await judge_opened(world.market) == 1
    judged = [message for message in node.read() if isinstance(message, ProofJudged)]
    assert len(judged) == 1
    return judged[0]


class Liar(Prover):
    def walk(self, challenge: ProofChallenge):  # type: ignore[no-untyped-def]
        return super().walk(challenge) ^ 1


async def test_an_honest_node_is_proven_and_matched_by_what_was_proven(world: World) -> None:
    node, client = await join(world), await make_client(world)
    wanted = spec(placement={"min_proven_gops": 1})
    refused = await client.quote(wanted)
    assert (refused.feasible, refused.constraints[0].constraint) == (False, "min_proven_gops")

    assert await asked(world) == 1
    await node.heartbeat()
    await answer(world, node, Prover(node.id), chain_ms=10)
    assert await judge_opened(world.market) == 1
    judged = node.expect(ProofJudged)

    assert (judged.passed, judged.status.state) == (True, "proven")
    assert judged.status.units[0].gops >= 1
    assert (await view(world, node)).proof == judged.status
    assert (await client.quote(wanted)).feasible
    assert not (await client.quote(spec(placement={"min_proven_gops": 10**6}))).feasible


async def test_evidence_is_kept_and_gives_the_same_finding_again(world: World) -> None:
    node = await join(world)
    assert await asked(world) == 1
    await answer(world, node, Prover(node.id))
    await judge_opened(world.market)
    node.read()
    (kept,) = await proofs_of(world.market, node.id)
    with pytest.raises(NotFound, match="no such node"):
        await proofs_of(world.market, node.id[:8])

    then, now = await replay(world.market, str(kept["proof_id"]))
    assert then == now
    assert then.result == "passed"
    async with world.market.transaction() as unit:
        row = await unit.session.get_one(HardwareProofRow, str(kept["proof_id"]))
        row.lanes = "A" * len(row.lanes or "")
    then, now = await replay(world.market, str(kept["proof_id"]))
    assert (then.result, now.result) == ("passed", "false"), "evidence that was changed does not give the same"
    with pytest.raises(NotFound):
        await replay(world.market, "proof_none")


async def test_how_long_a_walk_may_take_is_learned_of_the_owners_of_a_class(world: World) -> None:
    node, others = await join(world), [await join(world) for _ in range(LEAST_OWNERS)]
    for other in others:
        await other.disconnect()
    await open_windows(world.market)
    await prove_once(world, node, Prover(node.id), chain_ms=10, walk_ms=1)
    async with world.market.transaction() as unit:
        (first,) = (await unit.session.scalars(select(HardwareProofRow))).all()
        assert first.walk_permille is None, "nobody knows how fast this class is"
        established = record_of(await node_row(unit, node.id)).units["cpu"].gops
        kept = {column.key: getattr(first, column.key) for column in HardwareProofRow.__table__.columns}
        for number, other in enumerate(others):
            kept |= {"proof_id": f"proof_{number}", "node_id": other.id, "established_gops": established}
            unit.session.add(HardwareProofRow(**kept))

    # In time as long as nothing was learned; of this class nobody takes so long.
    judged = await prove_once(world, node, Prover(node.id), chain_ms=10, walk_ms=260)
    assert not judged.passed
    assert judged.detail.endswith("too slow to have been in that memory")
    assert judged.status.state == "proven", "once costs nothing, and is no lie"
    async with world.market.reading() as unit:
        query = select(HardwareProofRow).where(HardwareProofRow.node_id == node.id)
        newest = (await unit.session.scalars(query.order_by(HardwareProofRow.wanted_at_ms.desc()))).first()
    assert newest is not None
    assert newest.walk_permille is not None
    then, now = await replay(world.market, newest.proof_id)
    assert then == now
    for other in others:
        other.read()


async def test_lies_lead_to_quarantine_then_ban_and_the_operator_may_lift_it(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await open_windows(world.market)
    first = await prove_once(world, node, Liar(node.id))
    assert (first.passed, first.status.state) == (False, "quarantined")
    assert not (await client.quote(spec())).feasible, "no new leases in quarantine"

    assert (await prove_once(world, node, Prover(node.id))).status.state == "proven"
    assert (await client.quote(spec())).feasible

    for _ in range(2):
        await prove_once(world, node, Liar(node.id))
    assert (await prove_once(world, node, Liar(node.id))).status.state == "banned"
    assert not (await client.quote(spec())).feasible
    world.advance(seconds=7_200)
    await node.heartbeat()
    assert await open_windows(world.market) == 0

    await lift_ban(world.market, node.id)
    seen = await view(world, node)
    assert seen.proof is not None
    assert (seen.state, seen.proof.state) == (NodeState.ACTIVE, "unproven")


async def test_all_nodes_of_an_operator_get_their_nonces_at_the_same_moment(world: World) -> None:
    first, second = await join(world), make_node(world)
    second.offer = second.offer.model_copy(update={"payout_address": first.offer.payout_address})
    await second.connect()
    assert await asked(world) == 2

    (wanted,) = proof_messages(first)
    assert isinstance(wanted, ProofWanted)
    await on_proof_answer(world.market, first.id, ProofReady(proof_id=wanted.proof_id))
    assert proof_messages(first) == [], "it waits for the other to get ready"
    (other,) = proof_messages(second)
    assert isinstance(other, ProofWanted)
    await on_proof_answer(world.market, second.id, ProofReady(proof_id=other.proof_id))

    (mine,), (theirs,) = proof_messages(first), proof_messages(second)
    assert isinstance(mine, ProofChallenge)
    assert isinstance(theirs, ProofChallenge)
    assert mine.nonce != theirs.nonce
    assert mine.matrix_seed == theirs.matrix_seed


async def test_a_node_that_works_for_a_client_is_asked_all_the_same(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await asked(world)
    prover = Prover(node.id)
    await answer(world, node, prover)
    await judge_opened(world.market)
    node.read()
    await client.submit(spec(limits={"max_duration": "10h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    assert (await prove_once(world, node, prover)).passed
    async with world.market.reading() as unit:
        rows = (await unit.session.scalars(select(HardwareProofRow).order_by(HardwareProofRow.wanted_at_ms))).all()
    assert [row.busy for row in rows] == [False, True], "how fast it was then counts for less"
    assert node.lease.state == LeaseState.RUNNING


async def test_who_never_gets_ready_holds_up_nobody_and_stays_unproven(world: World) -> None:
    first, second = await join(world), make_node(world)
    second.offer = second.offer.model_copy(update={"payout_address": first.offer.payout_address})
    await second.connect()
    assert await asked(world) == 2
    (wanted,) = proof_messages(first)
    assert isinstance(wanted, ProofWanted)
    await on_proof_answer(world.market, first.id, ProofReady(proof_id=wanted.proof_id))
    world.advance(ms=world.market.policy.proof_ready_within_ms)
    await advance_windows(world.market)

    await answer(world, first, Prover(first.id))
    assert await judge_opened(world.market) == 2
    assert (await view(world, first)).proof.state == "proven"  # type: ignore[union-attr]
    assert (await view(world, second)).proof.state == "unproven"  # type: ignore[union-attr]
    second.read(), first.read()


async def test_answers_are_taken_once_in_order_and_only_from_their_node(world: World) -> None:
    nodes = [await join(world), await join(world)]
    assert await asked(world) >= 1
    wanted_of = {node.id: proof_messages(node) for node in nodes}
    node, other = sorted(
        nodes, key=lambda node: not wanted_of[node.id]
    )  # chance decides whether both are asked, or which of them
    (wanted,) = wanted_of[node.id]
    assert isinstance(wanted, ProofWanted)
    with pytest.raises(NotFound) as unknown:
        await on_proof_answer(world.market, other.id, ProofReady(proof_id=wanted.proof_id))
    assert unknown.value.code == "proof_unknown"
    early = ProofCommitted(proof_id=wanted.proof_id, phase="walk", lanes="AAAA")
    with pytest.raises(Conflict) as not_open:
        await on_proof_answer(world.market, node.id, early)
    assert not_open.value.code == "proof_not_open"


async def test_two_workers_at_once_open_one_window(world: World, database_url: str) -> None:
    node = await join(world)
    await open_windows(world.market)
    world.advance(seconds=61)
    engine = create_engine(database_url)
    try:
        other = dataclasses.replace(world.market, sessions=Sessions(engine), writer=asyncio.Lock())
        opened = await asyncio.gather(*(open_windows(market) for market in (world.market, other, world.market, other)))
    finally:
        await engine.dispose()

    assert sorted(opened) == [0, 0, 0, 1]
    assert [type(message) for message in proof_messages(node)] == [ProofWanted]
