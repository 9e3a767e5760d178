"""Uploads in very many pieces, on both databases."""

from __future__ import annotations

from sqlalchemy import func, insert, select

from tests.support.actors import make_client
from tests.support.market import World
from torg_marketplace.flow.blobs import plan_upload
from torg_marketplace.storage.models import BlobUploadRow
from torg_protocol.api import MAX_BLOB_PIECES, BlobUploadRequest
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef

DAY_MS = 86_400_000


async def test_a_blob_in_the_most_pieces_is_renewed_at_once(world: World) -> None:
    """More names than a statement of a database takes."""
    client = await make_client(world)
    pieces = tuple(BlobRef(digest=Digest(f"sha256:{number:064x}"), size_bytes=1) for number in range(MAX_BLOB_PIECES))
    old = {"account": client.account, "size_bytes": 1, "at_ms": world.clock.now_ms()}
    async with world.market.transaction() as unit:
        await unit.session.execute(insert(BlobUploadRow), [{"digest": each.digest} | old for each in pieces[1:]])
    world.advance(seconds=DAY_MS // 1000)
    request = BlobUploadRequest(digest=Digest("sha256:" + "f" * 64), size_bytes=MAX_BLOB_PIECES, pieces=pieces)
    answer = await plan_upload(world.market, client.account, request)
    assert [each.digest for each in answer.missing] == [pieces[0].digest]
    async with world.market.reading() as unit:
        young = select(func.count()).where(BlobUploadRow.at_ms == unit.now_ms)
        assert await unit.session.scalar(young) == MAX_BLOB_PIECES - 1
