"""Heartbeats taken together do what each by itself would."""

from __future__ import annotations

from sqlalchemy import event

from tests.support.actors import Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.bans import ban, lift
from torg_marketplace.flow.liveness import sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import inspect_anything, resume_node, suspend_node
from torg_marketplace.flow.pulse import Pulse
from torg_marketplace.flow.rows import node_row
from torg_protocol.messages import Granted, Heartbeat, Refused
from torg_protocol.states import Liveness, NodeState
from torg_protocol.suspensions import NodeSuspended, Suspension
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION


def beat(pulse: Pulse, node: Node, *, draining: bool = False) -> None:
    now_ms = node.world.clock.now_ms()
    pulse.beat(node.id, Heartbeat(at_ms=now_ms, leases=node._held_leases(), draining=draining), now_ms)


async def seen(world: World, node: Node) -> tuple[int, str, str]:
    async with world.market.reading() as unit:
        row = await node_row(unit, node.id)
        return row.last_seen_ms, row.liveness, row.state


async def test_everybody_is_renewed_by_one_statement(world: World) -> None:
    nodes, pulse = [await join(world) for _ in range(20)], Pulse()
    world.advance(seconds=10)
    heard_ms = world.clock.now_ms()
    for node in nodes:
        beat(pulse, node)
    world.advance(ms=700)  # they wait for the loop
    statements: list[str] = []
    engine = world.market.sessions.kw["bind"].sync_engine
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    assert await pulse.renew(world.market) == 20
    assert len([text for text in statements if text.startswith("UPDATE")]) == 1
    assert {await seen(world, node) for node in nodes} == {(heard_ms, Liveness.ALIVE, NodeState.ACTIVE)}
    assert await pulse.renew(world.market) == 0


async def test_a_silent_node_is_alive_again_and_a_lost_grant_is_repeated(world: World) -> None:
    node, client, pulse = await join(world), await make_client(world), Pulse()
    world.advance(seconds=40)
    await sweep(world.market)
    assert (await seen(world, node))[1] == Liveness.UNKNOWN
    beat(pulse, node)
    await pulse.renew(world.market)
    assert (await seen(world, node))[1] == Liveness.ALIVE
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    world.links.take_all(node.id)  # the grant got lost
    beat(pulse, node)
    await pulse.renew(world.market)
    node.expect(Granted)


async def test_draining_is_heard(world: World) -> None:
    node, pulse = await join(world), Pulse()
    beat(pulse, node, draining=True)
    await pulse.renew(world.market)
    assert (await seen(world, node))[2] == NodeState.DRAINING


async def test_a_fleet_that_was_silent_is_alive_again(world: World) -> None:
    nodes, pulse = [await join(world) for _ in range(30)], Pulse()
    world.advance(seconds=40)
    await sweep(world.market)
    for node in nodes:
        beat(pulse, node)
    world.advance(ms=900)
    statements: list[str] = []
    engine = world.market.sessions.kw["bind"].sync_engine
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    await pulse.renew(world.market)
    assert len([text for text in statements if text.startswith("UPDATE")]) == 2
    async with world.market.reading() as unit:
        newest = (await inspect_anything(unit, nodes[7].id))["events"][0]
    assert newest["data"] == {"liveness": "alive", "from": "unknown"}
    await sweep(world.market)
    assert {(await seen(world, node))[1] for node in nodes} == {Liveness.ALIVE}


async def test_a_suspended_node_is_told_until_it_says_that_it_knows(world: World) -> None:
    node, pulse = await join(world), Pulse()

    async def heard(*known: Suspension) -> list[tuple[Suspension, ...]]:
        now_ms = world.clock.now_ms()
        pulse.beat(node.id, Heartbeat(at_ms=now_ms, suspensions=known), now_ms)
        await pulse.renew(world.market)
        return [told.suspensions for told in node.read() if isinstance(told, NodeSuspended)]

    async with world.market.transaction() as unit:
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)
    since_ms = world.clock.now_ms()
    smoke = Suspension(by="operator", because="smoke was seen", since_ms=since_ms)
    world.links.take_all(node.id)  # a command of the operator reaches no node itself
    world.advance(seconds=10)
    assert await heard() == [(smoke,)]
    assert await heard() == [(smoke,)]  # it got lost
    assert await heard(smoke) == []
    async with world.market.transaction() as unit:
        await ban(unit, "node", node.id, because="scans others")
    world.links.take_all(node.id)
    ((first, second),) = await heard(smoke)
    assert (first, second.by, second.because) == (smoke, "ban", "scans others")
    async with world.market.transaction() as unit:
        await lift(unit, "node", node.id, because="another one")
        await resume_node(unit, node.id, because="steam")
    world.links.take_all(node.id)
    assert await heard(first, second) == [()]
    assert await heard() == []


async def test_a_suspended_node_of_the_release_before_has_it_in_its_log(world: World) -> None:
    node = await join(world)
    async with world.market.transaction() as unit:
        await suspend_node(unit, node.id, because="smoke was seen", stop=False)
    await node.disconnect()
    world.links.take_all(node.id)
    node.protocol_version = OLDEST_PROTOCOL_VERSION
    await node.connect()
    told = node.expect(Refused)
    assert not told.fatal
    assert told.problem["code"] == "node_suspended"
    assert "smoke was seen" in told.problem["title"]
