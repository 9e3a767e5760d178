"""Volumes that outlive their job: one writer at a time, generations, and what fences keep out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.actors import Client, Node, join, let_pass, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.volume_names import delete_volume, put_volume, volume_page, volume_view
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import Accepted, Released, VolumeAtStart, VolumeSnapshot, VolumesStored
from torg_protocol.states import EndReason, JobState
from torg_protocol.volumes import VolumeRequest, VolumeView


def writing(**changes: Any) -> dict[str, Any]:
    return spec(volumes=["data:/data"], **changes)


def reading(**changes: Any) -> dict[str, Any]:
    return spec(volumes=["data:/data:ro"], **changes)


async def view(world: World, client: Client) -> VolumeView:
    async with world.market.reading() as unit:
        return await volume_view(unit, client.account, "data")


async def store(world: World, node: Node, content: bytes, *, at_end: bool = True) -> BlobRef:
    blob = world.blobs.put(content)
    await node.ok(VolumesStored(volumes=(VolumeSnapshot(name="data", blob=blob),), at_end=at_end))
    return blob


async def put(world: World, client: Client, content: bytes, generation: int | None = None) -> VolumeView:
    blob = world.blobs.put(content)
    await world.blobs.sent_by(world.market, client.account, [blob])
    request = VolumeRequest(digest=blob.digest, size_bytes=blob.size_bytes, generation=generation)
    return await put_volume(world.market, client.account, "data", request)


async def run_writer(world: World, client: Client, node: Node, content: bytes) -> BlobRef:
    await client.submit(writing())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    blob = await store(world, node, content)
    await node.finish()
    node.read()
    return blob


async def test_what_a_job_leaves_the_next_one_begins_with_on_another_node(world: World) -> None:
    first, client = await join(world), await make_client(world)
    job = await client.submit(writing())
    assert (await view(world, client)).generation == 0
    assert await match_pending(world.market) == 1
    await first.accept_and_start()
    assert first.lease.grant.volumes == (VolumeAtStart(name="data", generation=0),)
    world.advance(seconds=10)
    blob = await store(world, first, b"one")
    assert (await view(world, client)).generation == 0, "nothing is made before the end"
    await first.finish()
    first.read()
    await first.disconnect()

    now = await view(world, client)
    assert (now.generation, now.digest, now.made_by, now.writer, now.users) == (1, blob.digest, job.job_id, None, ())
    (mine,) = (await client.job(job.job_id)).volumes
    assert (mine.read_generation, mine.written_generation, mine.digest) == (0, 1, blob.digest)
    second = await join(world)
    await client.submit(writing())
    assert await match_pending(world.market) == 1
    await second.accept_and_start()
    assert second.lease.grant.volumes == (VolumeAtStart(name="data", generation=1, blob=blob),)
    await store(world, second, b"one")
    await second.finish()
    second.read()
    assert (await view(world, client)).generation == 1, "as it was"


async def test_one_job_writes_and_the_next_waits_for_it(world: World) -> None:
    node, client = await join(world, slots=4, memory_gib=64), await make_client(world)
    first = await client.submit(writing(name="first"))
    world.advance(ms=1)
    second = await client.submit(writing(name="second"))
    assert await match_pending(world.market) == 1
    waits = (await client.job(second.job_id)).waiting_for
    assert waits == f'volume "data" is written by {first.job_id}; this job is next when that one is over'
    assert await match_pending(world.market) == 0
    with pytest.raises(Conflict) as busy:
        await put(world, client, b"meanwhile")
    assert (busy.value.code, busy.value.value) == ("volume_busy", "data")
    await node.accept_and_start()
    blob = await store(world, node, b"of the first")
    await node.finish()
    node.read()
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    assert node.lease.grant.volumes[0].blob == blob


async def test_readers_are_many_and_wait_for_nobody(world: World) -> None:
    node, client = await join(world, slots=4, memory_gib=64), await make_client(world)
    await put(world, client, b"models")
    await client.submit(writing())
    await client.submit(reading())
    await client.submit(reading())
    assert await match_pending(world.market) == 3
    node.read()
    assert [held.grant.volumes[0].generation for held in node.held.values()] == [1, 1, 1]
    assert len((await view(world, client)).users) == 3


async def test_a_reader_waits_until_there_is_something(world: World) -> None:
    node, client = await join(world, slots=2, memory_gib=64), await make_client(world)
    with pytest.raises(Invalid) as unknown:
        await client.submit(reading())
    assert (unknown.value.code, unknown.value.field) == ("volume_unknown", "volumes.data")
    writer = await client.submit(writing())
    world.advance(ms=1)
    reader = await client.submit(reading())
    assert await match_pending(world.market) == 1
    assert await match_pending(world.market) == 0
    told = (await client.job(reader.job_id)).waiting_for
    assert told == f'nothing is in volume "data" yet; {writer.job_id} writes it'
    await node.accept_and_start()
    blob = await store(world, node, b"one")
    await node.finish()
    node.read()
    assert await match_pending(world.market) == 1
    node.read()
    assert node.lease.grant.volumes == (VolumeAtStart(name="data", generation=1, blob=blob),)


@pytest.mark.parametrize("reason", [EndReason.FAILED_EXIT, EndReason.OOM, EndReason.DISK_FULL])
async def test_a_job_that_fails_leaves_the_last_generation(world: World, reason: EndReason) -> None:
    node, client = await join(world), await make_client(world)
    good = await run_writer(world, client, node, b"good")
    job = await client.submit(writing())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    half = await store(world, node, b"half")
    await node.finish(reason, 1)
    node.read()

    now = await view(world, client)
    assert (now.generation, now.digest, now.writer) == (1, good.digest, None)
    (mine,) = (await client.job(job.job_id)).volumes
    assert (mine.written_generation, mine.digest) == (None, half.digest)


async def test_a_cancelled_server_keeps_what_it_wrote(world: World) -> None:
    node, client = await join(world), await make_client(world)
    job = await client.submit(writing())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    world.advance(seconds=60)
    await client.cancel(job.job_id)
    assert (await view(world, client)).writer == job.job_id, "until its lease has ended"
    node.read()
    blob = await store(world, node, b"database")
    await node.finish(EndReason.CANCELLED, 143)
    node.read()
    now = await view(world, client)
    assert (now.generation, now.digest, now.writer) == (1, blob.digest, None)


async def test_a_killed_node_leaves_the_last_generation_and_its_late_word_is_refused(world: World) -> None:
    first, client = await join(world), await make_client(world)
    good = await run_writer(world, client, first, b"good")
    await client.submit(writing(lease_grace="60s"))
    assert await match_pending(world.market) == 1
    await first.accept_and_start()
    await first.disconnect()
    await let_pass(world, seconds=70)
    second = await join(world)
    assert await match_pending(world.market) == 1
    await second.accept_and_start()
    assert second.lease.grant.volumes == (VolumeAtStart(name="data", generation=1, blob=good),)

    late = VolumesStored(volumes=(VolumeSnapshot(name="data", blob=world.blobs.put(b"late")),), at_end=True)
    assert await first.refused(late) == "lease_stale"
    blob = await store(world, second, b"second")
    await second.finish()
    second.read()
    now = await view(world, client)
    assert (now.generation, now.digest) == (2, blob.digest)
    first.read()


async def test_an_attempt_goes_on_from_what_was_stored_before(world: World) -> None:
    first, client = await join(world), await make_client(world)
    await client.submit(writing())
    assert await match_pending(world.market) == 1
    await first.accept_and_start()
    await store(world, first, b"with the checkpoint", at_end=False)
    world.advance(seconds=10)
    last = await store(world, first, b"when it was drained")
    await first.exit(EndReason.DRAINED, 143)
    await first.ok(Released(reason=EndReason.DRAINED))
    first.read()
    assert (await view(world, client)).generation == 0
    second = await join(world)
    assert await match_pending(world.market) == 1
    second.read()
    assert second.lease.grant.volumes == (VolumeAtStart(name="data", generation=0, blob=last),)


async def test_after_a_loss_an_attempt_goes_on_from_the_snapshot_beside_the_checkpoint(world: World) -> None:
    first, client = await join(world), await make_client(world)
    await client.submit(writing(lease_grace="60s"))
    assert await match_pending(world.market) == 1
    await first.accept_and_start()
    draft = await store(world, first, b"with the checkpoint", at_end=False)
    await first.disconnect()
    await let_pass(world, seconds=70)
    first.read()
    second = await join(world)
    assert await match_pending(world.market) == 1
    second.read()
    assert second.lease.grant.volumes == (VolumeAtStart(name="data", generation=0, blob=draft),)


async def test_a_job_has_not_succeeded_when_its_volume_could_not_be_kept(world: World) -> None:
    node, client = await join(world), await make_client(world)
    jobs = []
    for problem in ("3.0 GiB are more than its max_size", ""):
        jobs.append(await client.submit(writing()))
        assert await match_pending(world.market) == 1
        await node.accept_and_start()
        if problem:
            snapshot = VolumeSnapshot(name="data", problem=problem)
            await node.ok(VolumesStored(volumes=(snapshot,), at_end=True))
        await node.finish()
        node.read()
    views = [await client.job(job.job_id) for job in jobs]
    assert [(item.state, item.reason) for item in views] == [(JobState.FAILED, EndReason.OUTPUT_MISSING)] * 2
    assert [item.detail for item in views] == [
        'missing: volume "data" (3.0 GiB are more than its max_size)',
        'missing: volume "data"',
    ]
    assert (await view(world, client)).generation == 0


async def test_a_node_stores_only_what_its_job_writes(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await put(world, client, b"models")
    await client.submit(reading())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    snapshot = VolumeSnapshot(name="data", blob=world.blobs.put(b"changed"))
    assert await node.refused(VolumesStored(volumes=(snapshot,), at_end=True)) == "volume_not_written"


async def test_the_node_that_has_it_is_preferred(world: World) -> None:
    nodes = {node.id: node for node in [await join(world) for _ in range(4)]}
    client = await make_client(world)

    async def granted_to(raw: dict[str, Any]) -> Node:
        await client.submit(raw)
        assert await match_pending(world.market) == 1
        (chosen,) = [node for node in nodes.values() if node.read() and node.held]
        return chosen

    async def run_on(node: Node, *, stores: bytes | None = None) -> None:
        await node.ok(Accepted())
        await node.start()
        if stores is not None:
            await store(world, node, stores)
        await node.finish()
        node.read()

    usual = await granted_to(spec())
    await run_on(usual)
    other = next(node for node in nodes.values() if node is not usual)
    pinned = await granted_to(writing(placement={"nodes": [other.id]}))
    assert pinned is other
    await run_on(other, stores=b"here")
    assert await granted_to(writing()) is other


async def test_volumes_are_of_one_account_and_go_when_nobody_uses_them(world: World) -> None:
    node, client, other = await join(world), await make_client(world), await make_client(world)
    first = await put(world, client, b"one", 0)
    assert (first.generation, await put(world, client, b"one")) == (1, first)
    with pytest.raises(Conflict) as moved:
        await put(world, client, b"two", 0)
    assert moved.value.code == "volume_moved"
    assert (await put(world, client, b"two", 1)).generation == 2
    with pytest.raises(NotFound) as unknown:
        await view(world, other)
    assert unknown.value.code == "volume_unknown"

    job = await client.submit(reading())
    async with world.market.reading() as unit:
        page = await volume_page(unit, client.account, cursor=None, limit=10)
    assert ([item.users for item in page.volumes], page.total_bytes) == ([(job.job_id,)], 3)
    assert await refusal_of_deletion(world, client) == "volume_in_use"
    await client.cancel(job.job_id)
    assert await refusal_of_deletion(world, client) is None
    assert await refusal_of_deletion(world, client) == "volume_unknown"
    assert await match_pending(world.market) == 0
    node.read()


async def refusal_of_deletion(world: World, client: Client) -> str | None:
    try:
        async with world.market.transaction() as unit:
            await delete_volume(unit, client.account, "data")
    except TorgError as error:
        return error.code
    return None
