"""After an account's data was erased, nothing of what it brought or made is left: not in the database's files, not in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.actors import TUSD, Client, Node, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.bans import report_abuse
from torg_marketplace.flow.blobs import use_blob
from torg_marketplace.flow.data import name_data
from torg_marketplace.flow.disputes import decide_dispute, open_dispute
from torg_marketplace.flow.erase import erase_account
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.stream import on_log, on_progress
from torg_marketplace.storage import ledger
from torg_marketplace.storage.blobs import local_blobs
from torg_protocol.canonical import sha256_digest
from torg_protocol.cases import AbuseRequest
from torg_protocol.data import DataRequest
from torg_protocol.errors import Conflict
from torg_protocol.ids import JobId
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import LogLines, Progress

MARK = "zebra-finch-7391"  # in everything that the client says


async def marked_job(world: World, node: Node, client: Client) -> JobId:
    workspace = world.blobs.put(f"source with {MARK}".encode())
    job = await client.submit(
        spec(
            name=MARK,
            command=["python", MARK],
            env={"TOKEN": MARK},
            workspace=workspace.model_dump(),
            checkpoint={"enabled": True},
            outputs=["*.txt"],
            limits={"max_duration": "1h"},
        ),
        key=f"key-{MARK}",
    )
    await match_pending(world.market)
    await node.accept_and_start()
    lease = node.lease.grant
    async with world.market.transaction() as unit:
        lines = LogLines(
            lease_id=lease.lease_id,
            fence=lease.fence,
            at_ms=unit.now_ms,
            stream="stdout",
            offset=0,
            text=f"says {MARK}\n",
        )
        await on_log(unit, node.id, lines)
        progress = Progress(
            lease_id=lease.lease_id, fence=lease.fence, at_ms=unit.now_ms, kind="step", data={"note": MARK}
        )
        await on_progress(unit, node.id, progress)
    world.advance(seconds=1800)
    await node.checkpoint(f"ck-{MARK}")
    await node.finish(outputs={"result.txt": f"trained {MARK}".encode()})
    node.read()
    return job.job_id


def bytes_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.sqlite*")):
        yield path.name, path.read_bytes()


async def test_nothing_that_the_client_said_or_made_is_left(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        node, client, other = await join(world, price=TUSD), await make_client(world), await make_client(world)
        job_id = await marked_job(world, node, client)
        named = world.blobs.put(f"data {MARK}".encode())
        shared = world.blobs.put(b"a public model")
        await world.blobs.sent_by(world.market, client.account, [named, shared])
        await world.blobs.sent_by(world.market, other.account, [shared])
        request = DataRequest(digest=named.digest, size_bytes=named.size_bytes)
        await name_data(world.market, client.account, "zebra", request)
        async with world.market.transaction() as unit:
            dispute = await open_dispute(unit, client.account, job_id, f"it lost {MARK}")
            await report_abuse(unit, other.account, AbuseRequest(subject=job_id, reason="loud"))
        with pytest.raises(Conflict) as undecided:
            await erase_account(world.market, client.account)
        assert undecided.value.code == "dispute_open"
        async with world.market.transaction() as unit:
            await decide_dispute(unit, dispute.dispute_id, share_percent=0, note="no")
        assert any(MARK.encode() in data for _, data in bytes_of(tmp_path)), "the test looks at the right files"

        erased = await erase_account(world.market, client.account)

        assert (erased.jobs, erased.blobs) == (1, 4)
        assert [data for data in world.blobs.stored.values() if MARK.encode() in data] == []
        assert shared.digest in world.blobs.stored, "somebody else has it too"
        assert [name for name, data in bytes_of(tmp_path) if MARK.encode() in data] == []

        # What money rests on is still there, and still right.
        receipts = await client.receipts(job_id)
        assert [signed.receipt.amount for signed in receipts] == [TUSD // 2]
        assert (await client.job(job_id)).name == "erased"
        await settle_due(world.market, hurry=True)
        await advance_settlements(world.market)
        await advance_settlements(world.market)
        node.read()
        assert await reconcile(world.market) == []
        async with world.market.reading() as unit:
            assert await ledger.problems(unit.session) == []
        again = await erase_account(world.market, client.account)
        assert (again.blobs, again.rows) == (0, 0)


async def test_what_others_use_stays(world: World) -> None:
    """Another client's job uses the same workspace, which this one had sent first."""
    await join(world)
    client, other = await make_client(world), await make_client(world)
    blob = world.blobs.put(b"the same source")
    first = await client.submit(spec(workspace=blob.model_dump()))
    await client.cancel(first.job_id)
    second = await other.submit(spec(workspace=blob.model_dump()))
    async with world.market.transaction() as unit:
        await use_blob(unit, blob.digest, second.job_id, client_may_read=True)
    assert (await erase_account(world.market, client.account)).blobs == 0
    assert blob.digest in world.blobs.stored
    assert json.dumps((await other.job(second.job_id)).spec.wire()).count(blob.digest) == 1


async def test_while_a_job_is_open_nothing_is_erased(world: World) -> None:
    await join(world)
    client = await make_client(world)
    job = await client.submit(spec(name="kept"))
    with pytest.raises(Conflict) as caught:
        await erase_account(world.market, client.account)
    assert caught.value.code == "jobs_open"
    assert job.job_id in (caught.value.hint or "")
    assert (await client.job(job.job_id)).name == "kept"


async def test_the_real_store_deletes_whole_blobs_and_lists_of_pieces(tmp_path: Path) -> None:
    store = local_blobs(tmp_path, b"secret", max_bytes=1 << 20)
    pieces = [await store.write(data) for data in (b"first", b"second")]
    refs = [BlobRef(digest=digest, size_bytes=size) for digest, size in zip(pieces, (5, 6), strict=True)]
    whole = BlobRef(digest=sha256_digest(b"firstsecond"), size_bytes=11)
    await store.put_together(whole, refs)
    assert await store.pieces_of(whole.digest) == tuple(refs)
    for digest in (whole.digest, *pieces, *pieces):
        await store.forget(digest)
    assert [await store.size(digest) for digest in (whole.digest, *pieces)] == [None, None, None]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
