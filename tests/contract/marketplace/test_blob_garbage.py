"""What leaves the store and what stays: over the real API, database and files, with a clock that goes on by days."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.actors import join, make_client, spec
from tests.support.api_server import ServedWorld, served_world
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_marketplace.flow.blobs import may_read_blob, plan_upload
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.models import BlobUploadRow
from torg_protocol.api import BlobUploadRequest
from torg_protocol.canonical import sha256_digest
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


async def test_how_much_is_kept_is_shown_without_counting_pieces_twice(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    await client.put_data("set", a_folder(tmp_path / "set", a=os.urandom(3 << 20), b=os.urandom(2 << 20)))
    await client.put_data("same", tmp_path / "set")
    async with served.wallet() as http:
        page = (await http.get("/v1/data")).json()
    assert 5 << 20 < page["stored_bytes"] < (5 << 20) + 10_000
    assert page["total_bytes"] == 2 * page["stored_bytes"]
