"""History goes after its time; money, receipts and states stay."""

from __future__ import annotations

import dataclasses

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import inspect_anything
from torg_marketplace.flow.retention import forget_history
from torg_marketplace.flow.stream import on_log
from torg_marketplace.storage import ledger
from torg_protocol.messages import LogLines
from torg_protocol.states import JobState
from torg_protocol.usage import verify_receipt

DAY_MS = 86_400_000


async def test_only_what_is_over_and_old_is_forgotten(world: World) -> None:
    policy = world.market.policy.model_copy(update={"keep_history_ms": 30 * DAY_MS})
    market = dataclasses.replace(world.market, policy=policy)
    node, client = await join(world, slots=2), await make_client(world, deposit=100 * TUSD)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    async with world.market.transaction() as unit:
        held = node.lease.grant
        line = LogLines(lease_id=held.lease_id, fence=held.fence, at_ms=0, stream="stdout", offset=0, text="hello\n")
        await on_log(unit, node.id, line)
    world.advance(seconds=60)
    await node.finish()
    node.read()
    world.advance(ms=29 * DAY_MS)
    assert await forget_history(market) == 0
    world.advance(ms=2 * DAY_MS)
    assert await forget_history(dataclasses.replace(market, policy=world.market.policy)) == 0  # by default for good
    assert await forget_history(market) > 0
    assert await forget_history(market) == 0
    kinds = [event.kind for event in await client.events(job.job_id)]
    assert "log" not in kinds
    assert kinds.count("lease") >= 4, "the moves stay"
    assert (await client.job(job.job_id)).state is JobState.SUCCEEDED
    (receipt,) = await client.receipts(job.job_id)
    verify_receipt(receipt)
    async with world.market.reading() as unit:
        assert await ledger.problems(unit.session) == []
        assert (await inspect_anything(unit, held.lease_id))["said"] == []


async def test_a_job_that_runs_keeps_its_history_however_old(world: World) -> None:
    policy = world.market.policy.model_copy(update={"keep_history_ms": 1})
    node, client = await join(world), await make_client(world, deposit=100 * TUSD)
    await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    held = node.lease.grant
    world.advance(seconds=60)
    await forget_history(dataclasses.replace(world.market, policy=policy))
    async with world.market.reading() as unit:
        assert len((await inspect_anything(unit, held.lease_id))["said"]) == 2


async def test_blobs_that_nothing_refers_to_leave_after_a_day(world: World) -> None:
    """On both databases; what exactly is kept, tests/contract/marketplace/test_blob_garbage.py asks."""
    client = await make_client(world)
    workspace, forgotten = world.blobs.put(b"of a job"), world.blobs.put(b"of nothing")
    await world.blobs.sent_by(world.market, client.account, [workspace, forgotten])
    await join(world)
    await client.submit(spec(workspace=workspace.model_dump()))
    world.advance(seconds=86_399)
    assert await collect_garbage(world.market) == 0
    world.advance(seconds=2)

    assert await collect_garbage(world.market) == 1
    assert await world.blobs.size(forgotten.digest) is None
    assert await world.blobs.size(workspace.digest) == workspace.size_bytes
