"""History goes after its time; money, receipts and states stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import select, update

from tests.support.actors import TUSD, Client, Node, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.api_keys import api_key_page, create_api_key
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.operate import inspect_anything
from torg_marketplace.flow.retention import FORGETTING, forget_counted, forget_deliveries, forget_history, forget_proofs
from torg_marketplace.flow.stream import on_log, on_progress
from torg_marketplace.flow.views import job_log, removed_after
from torg_marketplace.flow.webhooks import (
    Room,
    create_webhook,
    delete_webhook,
    delivery_page,
    due_deliveries,
    enqueue_deliveries,
    record_answer,
)
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage import ledger
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_marketplace.storage.webhook_models import DeliveryRow
from torg_marketplace.workers.loops import worker_loops
from torg_protocol.accounts import ApiKeyRequest
from torg_protocol.api import JobView
from torg_protocol.errors import Gone
from torg_protocol.messages import LogLines, Progress
from torg_protocol.states import JobState
from torg_protocol.usage import verify_receipt
from torg_protocol.webhooks import WebhookRequest

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


async def test_who_reads_on_from_before_what_went_is_told_so(world: World) -> None:
    node, client, job = await a_job_that_has_written(world)
    before = await client.events(job.job_id)
    logged = next(event for event in before if event.kind == "log")
    async with world.market.reading() as unit:
        assert await removed_after(unit, client.account, job.job_id, 0) is None
    await all_history_goes(world)

    kept = await client.events(job.job_id)
    assert {"log", "progress", "ports"}.isdisjoint({event.kind for event in kept})
    async with world.market.reading() as unit:
        notice = await removed_after(unit, client.account, job.job_id, kept[0].id)
        assert notice is not None
        assert (notice.id, notice.kind) == (kept[0].id, "removed"), (
            "whoever reads on from it skips nothing that is there"
        )
        assert {key: notice.data[key] for key in ("code", "until_id", "until_ms")} == {
            "code": "events_removed",
            "until_id": max(event.id for event in before if event.kind in {"log", "progress"}),
            "until_ms": logged.at_ms,
        }
        assert await removed_after(unit, client.account, job.job_id, notice.data["until_id"]) is None
        with pytest.raises(Gone) as gone:
            await job_log(unit, client.account, job.job_id, "stdout")
        assert gone.value.code == "log_removed"
        assert await job_log(unit, client.account, job.job_id, "stderr") == "", "nothing was ever written there"
    node.read()


async def test_a_reader_of_progress_that_was_pruned_is_told_so(tmp_path: Path, database_url: str) -> None:
    async with open_world(tmp_path, policy=MarketPolicy(progress_rows=5), database_url=database_url) as world:
        node, client = await join(world), await make_client(world, deposit=100 * TUSD)
        job = await client.submit(spec())
        assert await match_pending(world.market) == 1
        await node.accept_and_start()
        held = node.lease.grant
        for step in range(100):
            told = Progress(lease_id=held.lease_id, fence=held.fence, at_ms=0, kind="step", data={"step": step})
            async with world.market.transaction() as unit:
                await on_progress(unit, node.id, told)
        left = [event for event in await client.events(job.job_id) if event.kind == "progress"]
        assert [event.data["step"] for event in left] == [95, 96, 97, 98, 99]
        async with world.market.reading() as unit:
            notice = await removed_after(unit, client.account, job.job_id, 0)
            assert notice is not None
            assert notice.data["until_id"] == left[0].id - 1
        node.read()


async def test_a_key_is_good_for_a_month_after_its_job_and_for_good_by_default(world: World) -> None:
    node, client = await join(world), await make_client(world, deposit=100 * TUSD)
    job = await client.submit(spec(), key="mine")
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    await node.finish()
    node.read()
    policy = world.market.policy.model_copy(update={"keep_history_ms": DAY_MS})
    market = dataclasses.replace(world.market, policy=policy)

    world.advance(ms=30 * DAY_MS)
    await forget_history(market)
    assert (await client.submit(spec(), key="mine")).job_id == job.job_id
    world.advance(ms=1)
    assert await forget_history(world.market) == 0
    assert await forget_history(market) == 1
    world.advance(ms=-30 * DAY_MS)  # its nodes are known still
    assert (await client.submit(spec(), key="mine")).job_id != job.job_id


async def test_messages_to_webhooks_go_a_month_after_they_arrived_or_were_given_up(
    tmp_path: Path, database_url: str
) -> None:
    policy = MarketPolicy(webhook_networks=("127.0.0.0/8",))
    async with open_world(tmp_path, policy=policy, database_url=database_url) as world:
        await join(world)
        client = await make_client(world, deposit=100 * TUSD)
        async with world.market.transaction() as unit:
            asked = WebhookRequest(url="http://127.0.0.1:1/hook", kinds=("job",))
            hook = (await create_webhook(unit, client.account, asked)).webhook
        for _ in range(3):
            await client.cancel((await client.submit(spec())).job_id)
        await enqueue_deliveries(world.market)
        arrived, given_up, waits = await due_deliveries(world.market, Room(3, 3, {}, 3, frozenset()))
        await record_answer(world.market, arrived.delivery_id, "status 200", delivered=True)
        async with world.market.transaction() as unit:
            lost = update(DeliveryRow).where(DeliveryRow.delivery_id == given_up.delivery_id)
            await unit.session.execute(lost.values(tries=100))
        await record_answer(world.market, given_up.delivery_id, "status 500", delivered=False)
        await record_answer(world.market, waits.delivery_id, "status 500", delivered=False)

        world.advance(ms=30 * DAY_MS)
        assert await forget_deliveries(world.market) == 0
        world.advance(seconds=61)
        assert await forget_deliveries(world.market) == 2
        async with world.market.transaction() as unit:
            page = await delivery_page(unit, client.account, hook.webhook_id, cursor=None, limit=50)
            assert waits.delivery_id in {delivery.delivery_id for delivery in page.deliveries}
            await delete_webhook(unit, client.account, hook.webhook_id)
        world.advance(ms=32 * DAY_MS)
        assert await forget_deliveries(world.market) == len(page.deliveries) + 1, "and the webhook itself"


async def test_sessions_of_wallets_go_a_day_after_their_end_and_keys_stay(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        for name, cap in (("siws-0", 0), ("siws-1", 5), ("reads", 0)):
            asked = ApiKeyRequest(name=name, scopes=("jobs:read",), spend_cap=cap, expires_in_s=3600)
            await create_api_key(unit, client.account, asked)
    world.advance(ms=DAY_MS + 3_600_000)
    assert await forget_counted(world.market) == 0
    world.advance(ms=1)
    assert await forget_counted(world.market) == 1
    async with world.market.reading() as unit:
        assert {key.name for key in (await api_key_page(unit, client.account, cursor=None, limit=9)).keys} == {
            "siws-1",
            "reads",
        }


async def test_proofs_go_after_a_month_but_for_those_that_a_lease_is_measured_by(world: World) -> None:
    node, client = await join(world), await make_client(world, deposit=10_000 * TUSD)
    idle = await join(world)
    await client.submit(spec(limits={"max_duration": "30d"}))
    assert await match_pending(world.market) == 1
    working = node if node.read() else idle
    async with world.market.transaction() as unit:
        for number, of in enumerate((node, idle)):
            row = HardwareProofRow(proof_id=f"proof_{number}", window_id="window_1", node_id=of.id, unit="cpu")
            row.state, row.wanted_at_ms, row.due_at_ms = "judged", unit.now_ms, unit.now_ms
            row.challenged_at_ms = row.chain_at_ms = row.walk_at_ms = row.opened_at_ms = row.judged_at_ms = unit.now_ms
            row.challenge, row.root, row.lanes, row.walk_permille = None, None, None, None
            unit.session.add(row)
    world.advance(ms=30 * DAY_MS)
    assert await forget_proofs(world.market) == 0
    world.advance(ms=1)
    assert await forget_proofs(world.market) == 1
    async with world.market.reading() as unit:
        assert set(await unit.session.scalars(select(HardwareProofRow.node_id))) == {working.id}
    idle.read()


def test_everything_that_forgets_is_called_by_the_worker(world: World) -> None:
    names = {loop.name for loop in worker_loops(world.market)}
    assert {f"forget {what}" for what in FORGETTING} <= names


async def a_job_that_has_written(world: World) -> tuple[Node, Client, JobView]:
    node, client = await join(world), await make_client(world, deposit=100 * TUSD)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    held = node.lease.grant
    async with world.market.transaction() as unit:
        line = LogLines(lease_id=held.lease_id, fence=held.fence, at_ms=0, stream="stdout", offset=0, text="hello\n")
        await on_log(unit, node.id, line)
        told = Progress(lease_id=held.lease_id, fence=held.fence, at_ms=0, kind="step", data={"step": 1})
        await on_progress(unit, node.id, told)
    world.advance(seconds=60)
    await node.finish()
    node.read()
    return node, client, job


async def all_history_goes(world: World) -> None:
    world.advance(ms=31 * DAY_MS)
    policy = world.market.policy.model_copy(update={"keep_history_ms": 30 * DAY_MS})
    assert await forget_history(dataclasses.replace(world.market, policy=policy)) > 0


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
