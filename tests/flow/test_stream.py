"""Live logs and progress: each byte once, the newest kept, everything bounded."""

from __future__ import annotations

import pytest

from tests.support.actors import Client, Node, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.stream import on_log, on_ports, on_progress
from torg_marketplace.flow.views import events_after, job_log, job_view
from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.api import JobView
from torg_protocol.errors import Conflict, Invalid, NotFound, TooLarge
from torg_protocol.messages import LogLines, PortsState, Progress


async def running(world: World) -> tuple[Client, Node, JobView]:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    return client, node, job


async def log(node: Node, offset: int, text: str, *, stream: str = "stdout", fence: int = 1) -> None:
    async with node.world.market.transaction() as unit:
        lines = LogLines.model_validate(
            {
                "lease_id": node.lease.grant.lease_id,
                "fence": fence,
                "at_ms": 0,
                "stream": stream,
                "offset": offset,
                "text": text,
            }
        )
        await on_log(unit, node.id, lines)


async def progress(node: Node, kind: str = "step", **data: object) -> None:
    async with node.world.market.transaction() as unit:
        message = Progress.model_validate(
            {"lease_id": node.lease.grant.lease_id, "fence": 1, "at_ms": 0, "kind": kind, "data": data}
        )
        await on_progress(unit, node.id, message)


async def text_of(client: Client, job: JobView, stream: str = "stdout", offset: int = 0) -> str:
    async with client.world.market.reading() as unit:
        return await job_log(unit, client.account, job.job_id, stream, offset)


async def test_repeated_and_overlapping_lines_leave_each_byte_once(world: World) -> None:
    client, node, job = await running(world)
    await log(node, 0, "epoch 1\n")
    await log(node, 0, "epoch 1\n")
    await log(node, 6, "1\nepoch 2\n")
    await log(node, 0, "warning\n", stream="stderr")

    assert await text_of(client, job) == "epoch 1\nepoch 2\n"
    assert await text_of(client, job, offset=8) == "epoch 2\n"
    assert await text_of(client, job, "stderr") == "warning\n"


async def test_offsets_are_bytes_not_characters(world: World) -> None:
    client, node, job = await running(world)
    await log(node, 0, "größe ")
    await log(node, 8, "10\n")

    assert await text_of(client, job) == "größe 10\n"


async def test_undecodable_output_loses_nothing_that_follows(world: World) -> None:
    """A byte that is no UTF-8 arrives as a replacement character of three bytes; the next offset counts it as one."""
    client, node, job = await running(world)
    await log(node, 0, "a\N{REPLACEMENT CHARACTER}b")
    await log(node, 3, "cd")

    assert await text_of(client, job) == "a\N{REPLACEMENT CHARACTER}bcd"


async def test_a_gap_is_shown_as_it_is(world: World) -> None:
    client, node, job = await running(world)
    await log(node, 0, "one ")
    await log(node, 100, "two")

    assert await text_of(client, job) == "one two"


async def test_the_live_log_is_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = MarketPolicy(live_log_bytes=1_000)
    async with open_world(tmp_path_factory.mktemp("market"), policy=policy) as world:
        client, node, job = await running(world)
        for number in range(100):
            await log(node, number * 100, "x" * 99 + "\n")
        text = await text_of(client, job)

    assert len(text) < 1_200
    assert text.endswith("[the live log ends here; the whole log comes with the result]\n")


async def test_a_message_that_is_too_large_is_refused(world: World) -> None:
    _, node, _ = await running(world)
    with pytest.raises(TooLarge) as caught:
        await log(node, 0, "x" * 70_000)
    assert caught.value.code == "log_too_large"
    with pytest.raises(TooLarge) as caught:
        await progress(node, note="x" * 20_000)
    assert caught.value.code == "progress_too_large"


async def test_nobody_writes_into_a_lease_that_is_not_its_own(world: World) -> None:
    _, node, _ = await running(world)
    thief = await join(world)
    thief.held = node.held
    with pytest.raises(NotFound) as unknown:
        await log(thief, 0, "x")
    assert unknown.value.code == "lease_unknown"
    with pytest.raises(Conflict) as stale:
        await log(node, 0, "x", fence=2)
    assert stale.value.code == "lease_stale"


async def test_an_unknown_stream_is_refused(world: World) -> None:
    client, _, job = await running(world)
    with pytest.raises(Invalid) as caught:
        await text_of(client, job, "stdin")
    assert caught.value.code == "stream_unknown"


async def test_the_newest_progress_is_the_jobs_and_the_history_is_bounded(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    policy = MarketPolicy(progress_rows=50)
    async with open_world(tmp_path_factory.mktemp("market"), policy=policy) as world:
        client, node, job = await running(world)
        await progress(node, "preparing", step="image", done_bytes=1, total_bytes=2)
        for step in range(199):
            await progress(node, step=step, loss=0.5)
        events = [event for event in await client.events(job.job_id) if event.kind == "progress"]
        view = await client.job(job.job_id)

    assert view.progress == {"kind": "step", "attempt": 1, "step": 198, "loss": 0.5}
    assert [event.data["step"] for event in events] == list(range(149, 199))


async def ports(node: Node, *states: tuple[int, bool, str]) -> None:
    async with node.world.market.transaction() as unit:
        said = [{"port": port, "ready": ready, "detail": detail} for port, ready, detail in states]
        message = PortsState.model_validate(
            {"lease_id": node.lease.grant.lease_id, "fence": 1, "at_ms": 0, "ports": said}
        )
        await on_ports(unit, node.id, message)


async def test_declared_ports_are_shown_as_the_node_last_found_them_and_others_are_not(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(spec(ports=[{"port": 8888}]))
    await match_pending(world.market)
    await node.accept_and_start()
    await ports(node, (8888, False, "nobody listens"), (22, True, ""))
    await ports(node, (8888, True, ""))
    await ports(node, (8888, True, ""))

    async with world.market.reading() as unit:
        (lease,) = (await job_view(unit, client.account, job.job_id)).leases
        events, _ = await events_after(unit, client.account, job.job_id, 0)
    assert [(port.port, port.ready) for port in lease.ports] == [(8888, True)]
    assert [event.data["ready"] for event in events if event.kind == "ports"] == [False, True]
