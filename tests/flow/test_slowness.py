"""A lease on a machine that turns out slower than it was sold is given back in proportion."""

from __future__ import annotations

from tests.support.actors import TUSD, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.refunds import refunds_of
from torg_marketplace.rules.proof import Finding, ProofRecord, UnitRecord
from torg_marketplace.storage.models import NodeRow
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.messages import RefundIssued
from torg_protocol.refunds import RefundCause, RefundPage


async def prove(world: World, node: Node, gops: float) -> None:
    """A judged proof, as `judge_proof` leaves it."""
    async with world.market.transaction() as unit:
        found = Finding(result="passed", detail="", gops=gops)
        unit.session.add(
            HardwareProofRow(
                proof_id=unit.new_id("proof"),
                window_id=unit.new_id("window"),
                node_id=node.id,
                unit="cpu",
                state="judged",
                wanted_at_ms=unit.now_ms,
                due_at_ms=unit.now_ms,
                challenged_at_ms=unit.now_ms,
                judged_at_ms=unit.now_ms,
                finding=found.model_dump(mode="json"),
            )
        )


async def an_hour_on(world: World, *, sold: float, shown: float) -> tuple[Node, RefundPage]:
    node, client = await join(world, price=TUSD), await make_client(world)
    async with world.market.transaction() as unit:
        record = ProofRecord(units={"cpu": UnitRecord(samples=(sold, sold, sold))})
        (await unit.session.get_one(NodeRow, node.id)).proof = record.model_dump(mode="json")
    await prove(world, node, 1.0)  # from before the lease: says nothing about it
    world.advance(seconds=60)
    await client.submit(spec(limits={"max_duration": "1h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    for _ in range(3):
        world.advance(seconds=1200)
        await prove(world, node, shown)
    await node.finish()
    async with world.market.reading() as unit:
        return node, await refunds_of(unit, client.account)


async def test_half_the_speed_costs_half_the_price(world: World) -> None:
    node, page = await an_hour_on(world, sold=1024, shown=512)
    (found,) = [item.signed for item in page.refunds]
    assert (found.refund.cause, found.refund.amount) == (RefundCause.SLOW_LEASE, TUSD // 2)
    assert found.refund.note == "cpu did 512 of 1,024 billion operations/s, by 3 proofs while it was leased"
    assert [message.refund for message in node.read() if isinstance(message, RefundIssued)] == [found]


async def test_a_machine_of_its_class_is_paid_in_full(world: World) -> None:
    node, page = await an_hour_on(world, sold=1024, shown=1030)
    assert page.refunds == ()
    node.read()
