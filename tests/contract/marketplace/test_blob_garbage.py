"""What leaves the store and what stays: over the real API, database and files, with a clock that goes on by days."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.actors import join, make_client, spec
from tests.support.api_server import ServedWorld, served_world
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_marketplace.flow import garbage
from torg_marketplace.flow.blobs import UploadNotes, check_readable, may_read_blob, plan_upload
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.leaving import begin_leaving, forget_left_over
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.blobs import StoredBlobs
from torg_marketplace.storage.models import BlobUploadRow
from torg_protocol.api import BlobUploadRequest
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Invalid, Unavailable
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef
from torg_protocol.pieces import digest_of_pieces

DAY_MS = 86_400_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(served: ServedWorld, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(ClientConfig(tmp_path / "home", served.url), served.client.key) as opened:
        yield opened


def market_with(served: ServedWorld, **policy: Any) -> Market:
    market = served.world.market
    return dataclasses.replace(market, policy=market.policy.model_copy(update=policy))


def a_folder(root: Path, **files: bytes) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


async def test_data_without_a_name_goes_with_the_pieces_that_nothing_else_has(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    shared = os.urandom(3 << 20)
    kept = await client.put_data("kept", a_folder(tmp_path / "kept", a=shared, b=os.urandom(2 << 20)))
    gone = await client.put_data("gone", a_folder(tmp_path / "gone", a=shared, b=os.urandom(2 << 20)))
    blobs, clock = served.world.market.blobs, served.world.clock
    of_kept, of_gone = set(await blobs.pieces_of(kept.digest)), set(await blobs.pieces_of(gone.digest))
    assert of_kept & of_gone
    assert of_gone - of_kept
    await client.remove_data("gone")

    clock.time_ms += DAY_MS - 1
    assert await collect_garbage(served.world.market) == 0
    clock.time_ms += 2
    assert await collect_garbage(served.world.market) == 1 + len(of_gone - of_kept)

    assert await blobs.size(gone.digest) is None
    assert [await blobs.size(piece.digest) for piece in of_gone - of_kept] == [None] * len(of_gone - of_kept)
    pieces = await blobs.pieces_of(kept.digest)
    assert digest_of_pieces(pieces) == kept.digest
    assert [sha256_digest(await blobs.read(piece.digest)) for piece in pieces] == [piece.digest for piece in pieces]
    assert await collect_garbage(served.world.market) == 0


async def test_what_a_job_uses_stays_while_it_is_open_and_as_long_after_as_the_operator_says(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    await join(served.world)
    data = await client.put_data("set", a_folder(tmp_path / "set", a=b"rows"))
    raw = spec(inputs=[{"data": "set", "path": "/data"}], limits={"queue_timeout": "20d", "max_duration": "1h"})
    job = await served.client.submit({**raw, "workspace": None})
    await client.remove_data("set")
    for_good, two_days = market_with(served), market_with(served, keep_blobs_ms=2 * DAY_MS)
    served.world.clock.time_ms += 3 * DAY_MS

    assert await collect_garbage(two_days) == 0  # it is open
    await served.client.cancel(job.job_id)
    served.world.clock.time_ms += 2 * DAY_MS
    assert await collect_garbage(two_days) == 0  # closed two days ago, to the millisecond
    served.world.clock.time_ms += 1
    assert await collect_garbage(for_good) == 0
    assert await collect_garbage(two_days) == 1
    async with served.world.market.reading() as unit:
        assert not await may_read_blob(unit, served.client.account, data.digest)


async def test_a_worker_that_was_frozen_deletes_nothing_that_came_anew(
    served: ServedWorld, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another did its work meanwhile, and one of the blobs was sent again: of that the frozen one knows nothing."""
    market, files = served.world.market, {"a": os.urandom(1 << 20), "b": os.urandom(1 << 20)}
    for name, data in files.items():
        await client.put_data(name, a_folder(tmp_path / name, file=data))
        await client.remove_data(name)
    today, served.world.clock.time_ms = served.world.clock.time_ms, served.world.clock.time_ms + DAY_MS + 1
    forget, again = market.blobs.forget, list[Digest]()

    async def freeze(digest: Digest) -> None:
        monkeypatch.setattr(market.blobs, "forget", forget)
        await forget_left_over(market)  # by who leads now
        served.world.clock.time_ms = today  # signatures want the real one
        again.extend([(await client.put_data(name, tmp_path / name)).digest for name in files])
        await forget(digest)

    monkeypatch.setattr(market.blobs, "forget", freeze)
    await collect_garbage(market)

    there = [digest for digest in again if await market.blobs.size(digest) is not None]
    assert len(again) == 2
    assert len(there) >= 1, "at most what was being deleted at that moment"


async def test_a_blob_of_two_accounts_stays_while_one_of_them_needs_it(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    folder = a_folder(tmp_path / "set", a=os.urandom(1000))
    mine = await client.put_data("mine", folder)
    await client.remove_data("mine")
    served.world.clock.time_ms += 60_000
    other = await make_client(served.world)
    async with AsyncClient(ClientConfig(tmp_path / "other", served.url), other.key) as second:
        theirs = await second.put_data("theirs", folder)
        await second.remove_data("theirs")
    served.world.clock.time_ms += DAY_MS - 30_000

    assert theirs.digest == mine.digest
    assert await collect_garbage(served.world.market) == 0  # theirs is younger than a day
    async with served.world.market.reading() as unit:
        assert not await may_read_blob(unit, served.client.account, mine.digest)
        assert await may_read_blob(unit, other.account, mine.digest)
    served.world.clock.time_ms += 60_000
    assert await collect_garbage(served.world.market) == 1


async def test_what_was_just_asked_about_is_not_taken_away_under_an_upload(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    """A client that comes back after days is told that the store has its pieces: they must be there when it relies on it."""
    put = await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    pieces = await served.world.market.blobs.pieces_of(put.digest)
    await client.remove_data("set")
    served.world.clock.time_ms += 2 * DAY_MS
    other = BlobRef(digest=Digest("sha256:" + "0" * 64), size_bytes=1)
    request = BlobUploadRequest(digest=other.digest, size_bytes=1, pieces=(*pieces, other))

    answer = await plan_upload(served.world.market, served.client.account, request)

    assert [item.digest for item in answer.missing] == [other.digest]
    await collect_garbage(served.world.market)
    assert all([await served.world.market.blobs.size(piece.digest) for piece in pieces])


async def test_what_an_upload_is_based_on_stays_while_it_is_sent(
    served: ServedWorld, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces were sent by somebody else: with the whole they go. The store is asked outside of transactions."""
    put = await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    market = served.world.market
    pieces = await market.blobs.pieces_of(put.digest)
    await client.remove_data("set")
    async with market.transaction() as unit:
        theirs = update(BlobUploadRow).where(BlobUploadRow.digest.in_([piece.digest for piece in pieces]))
        await unit.session.execute(theirs.values(account="a node"))
    served.world.clock.time_ms += 2 * DAY_MS
    other = BlobRef(digest=Digest("sha256:" + "0" * 64), size_bytes=1)
    request = BlobUploadRequest(digest=other.digest, size_bytes=1, pieces=(*pieces, other), based_on=put.digest)
    reading: list[Unit] = []
    monkeypatch.setattr(Market, "reading", noted(Market.reading, reading))
    asked = market.blobs.pieces_of

    async def pieces_of(digest: Digest) -> tuple[BlobRef, ...]:
        assert not reading
        return await asked(digest)

    monkeypatch.setattr(market.blobs, "pieces_of", pieces_of)

    answer = await plan_upload(market, served.client.account, request)

    assert [item.digest for item in answer.missing] == [other.digest]
    await collect_garbage(market)
    assert all([await market.blobs.size(piece.digest) for piece in pieces])


def noted(
    reading: Callable[[Market], AbstractAsyncContextManager[Unit]], now: list[Unit]
) -> Callable[[Market], AbstractAsyncContextManager[Unit]]:
    """`now`: the transactions that read at this moment."""

    @asynccontextmanager
    async def opened(market: Market) -> AsyncIterator[Unit]:
        async with reading(market) as unit:
            now.append(unit)
            try:
                yield unit
            finally:
                now.remove(unit)

    return opened


def at_each_deletion(
    monkeypatch: pytest.MonkeyPatch, market: Market, then: Callable[[Digest], Awaitable[None]]
) -> None:
    """`then` happens when somebody has seen that nobody needs the blob, and has not deleted it yet."""
    forget = market.blobs.forget

    async def slowly(digest: Digest) -> None:
        await then(digest)
        await forget(digest)

    monkeypatch.setattr(market.blobs, "forget", slowly)


async def stored(served: ServedWorld, account: str, data: bytes) -> Digest:
    """As PUT does it."""
    digest = sha256_digest(data)
    await received(served, data)
    await UploadNotes().note(served.world.market, account, digest, len(data))
    return digest


async def received(served: ServedWorld, data: bytes) -> None:
    blobs = served.world.market.blobs
    assert isinstance(blobs, StoredBlobs)
    await blobs.receive(sha256_digest(data), len(data), a_stream(data))


async def a_stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_bytes_that_are_sent_while_they_are_deleted_are_sent_again_and_stay(
    served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was deleted then, after its sender was told that it was stored, was what he had sent."""
    market, account, data = served.world.market, served.client.account, b"a workspace of yesterday"
    digest = await stored(served, account, data)
    served.world.clock.time_ms += DAY_MS + 1
    said: list[str] = []

    async def sent_again(_: Digest) -> None:
        answer = await plan_upload(market, account, BlobUploadRequest(digest=digest, size_bytes=len(data)))
        assert answer.url is not None, "it is on its way out, and so not there"
        with pytest.raises(Unavailable) as refused:
            await stored(served, account, data)
        said.append(refused.value.code)

    with monkeypatch.context() as during:
        at_each_deletion(during, market, sent_again)
        assert await collect_garbage(market) == 1
    assert said == ["blob_leaving"]
    assert await market.blobs.size(digest) is None

    await stored(served, account, data)
    assert await collect_garbage(market) == 0
    assert await market.blobs.read(digest) == data


async def test_an_upload_that_began_before_its_bytes_were_deleted_and_ended_after_is_made_again(
    served: ServedWorld,
) -> None:
    market, data = served.world.market, b"the same of two accounts"
    digest = await stored(served, "one", data)
    served.world.clock.time_ms += DAY_MS + 1
    await received(served, data)  # of another one, which is not noted yet
    assert await collect_garbage(market) == 1
    with pytest.raises(Unavailable) as refused:
        await UploadNotes().note(market, "other", digest, len(data))

    assert refused.value.code == "blob_leaving"
    async with market.reading() as unit:
        assert not await may_read_blob(unit, "other", digest)


async def test_what_a_killed_process_has_begun_to_delete_is_deleted_by_the_next(
    served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, data = served.world.market, b"nobody needs it"
    digest = await stored(served, "one", data)
    served.world.clock.time_ms += DAY_MS + 1

    async def killed(_: Digest) -> None:
        raise ConnectionError

    with monkeypatch.context() as during:
        at_each_deletion(during, market, killed)
        with pytest.raises(ConnectionError):
            await collect_garbage(market)
    assert await market.blobs.size(digest) == len(data)
    await collect_garbage(market)
    assert await market.blobs.size(digest) is None
    assert await stored(served, "one", data) == digest


async def test_who_is_told_that_a_blob_of_a_job_of_his_is_there_can_rely_on_it(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    """Whoever has sent it: a node, say."""
    await join(served.world)
    data = await client.put_data("set", a_folder(tmp_path / "set", a=b"rows"))
    raw = {**spec(inputs=[{"data": "set", "path": "/data"}]), "workspace": None}
    job = await served.client.submit(raw)
    await client.remove_data("set")
    await served.client.cancel(job.job_id)
    market = market_with(served, keep_blobs_ms=2 * DAY_MS)
    async with market.transaction() as unit:
        theirs = update(BlobUploadRow).where(BlobUploadRow.digest == data.digest)
        await unit.session.execute(theirs.values(account="a node"))
    served.world.clock.time_ms += 2 * DAY_MS

    request = BlobUploadRequest(digest=data.digest, size_bytes=data.size_bytes)
    assert (await plan_upload(market, served.client.account, request)).url is None
    served.world.clock.time_ms += DAY_MS // 2 - 1
    await collect_garbage(market)

    assert await market.blobs.size(data.digest) == data.size_bytes


async def test_the_pieces_of_a_whole_stay_that_is_asked_about_during_a_pass(
    served: ServedWorld, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pass has seen that nobody needs the whole, and before it comes to its pieces."""
    market, account = served.world.market, served.client.account
    put = await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    pieces = await market.blobs.pieces_of(put.digest)
    await client.remove_data("set")
    served.world.clock.time_ms += DAY_MS + 1
    look = garbage._pieces_of_what_is_kept

    async def then_asked(market: Market) -> set[bytes]:
        found = await look(market)
        assert await check_readable(market, account, put.digest, field="workspace") == put.size_bytes
        return found

    monkeypatch.setattr(garbage, "_pieces_of_what_is_kept", then_asked)

    assert await collect_garbage(market) == 0
    assert None not in [await market.blobs.size(piece.digest) for piece in pieces]


async def test_a_whole_whose_pieces_have_begun_to_go_is_not_there(
    served: ServedWorld, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, account = served.world.market, served.client.account
    put = await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    await client.remove_data("set")
    served.world.clock.time_ms += DAY_MS + 1
    asked: list[bool] = []

    async def ask(_: Digest) -> None:
        with contextlib.suppress(Invalid):
            await check_readable(market, account, put.digest, field="workspace")
            asked.append(True)

    async with market.transaction() as unit:  # the whole is older, and its turn comes later
        pieces = [piece.digest for piece in await market.blobs.pieces_of(put.digest)]
        await begin_leaving(unit, pieces[:1])
    at_each_deletion(monkeypatch, market, ask)
    await collect_garbage(market)

    assert not asked


async def test_how_much_is_kept_is_shown_without_counting_pieces_twice(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    await client.put_data("same", tmp_path / "set")
    async with served.wallet() as http:
        page = (await http.get("/v1/data")).json()
    assert 5 << 20 < page["stored_bytes"] < (5 << 20) + 10_000
    assert page["total_bytes"] == 2 * page["stored_bytes"]
