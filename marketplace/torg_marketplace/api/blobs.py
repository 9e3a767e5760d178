"""Blobs: ask (signed) for a URL, then move the bytes there."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from torg_marketplace.api.auth import Account
from torg_marketplace.api.context import TheEdge
from torg_marketplace.flow.blobs import may_read_blob, note_upload
from torg_protocol.api import BlobDownload, BlobUpload, BlobUploadRequest
from torg_protocol.errors import NotFound
from torg_protocol.ids import Digest

router = APIRouter()


@router.post("/v1/blobs")
async def post_blob(body: BlobUploadRequest, account: Account, edge: TheEdge) -> BlobUpload:
    """Where to PUT these bytes; `url` is null when the store has them already."""
    market = edge.market
    url = await market.blobs.upload_url(body.digest, body.size_bytes, market.clock.now_ms())
    async with market.transaction() as unit:
        await note_upload(unit, account, body.digest, body.size_bytes)
    return BlobUpload(digest=body.digest, url=url)


@router.get("/v1/blobs/{digest}")
async def get_blob(digest: str, account: Account, edge: TheEdge) -> BlobDownload:
    """Where to GET these bytes, for those who may read them: uploader, client of a job that uses them, node with its lease."""
    name = Digest(digest)
    async with edge.market.reading() as unit:
        allowed = await may_read_blob(unit, account, name)
    size = await edge.market.blobs.size(name) if allowed else None
    if size is None:
        raise NotFound("no such blob that you may read", code="blob_missing", field="digest", value=digest)
    url = await edge.market.blobs.download_url(name, edge.market.clock.now_ms())
    return BlobDownload(digest=name, size_bytes=size, url=url)


@router.put("/blobs/{digest}", status_code=204)
async def put_bytes(digest: str, size: int, expires: int, signature: str, request: Request, edge: TheEdge) -> Response:
    """The bytes themselves, to a signed URL. Refused, and nothing stored, unless they are what the digest says."""
    edge.blobs.check_url("PUT", digest, size, expires, signature, edge.market.clock.now_ms())
    await edge.blobs.receive(Digest(digest), size, request.stream())
    return Response(status_code=204)


@router.get("/blobs/{digest}", response_class=StreamingResponse)
async def get_bytes(digest: str, size: int, expires: int, signature: str, edge: TheEdge) -> StreamingResponse:
    edge.blobs.check_url("GET", digest, size, expires, signature, edge.market.clock.now_ms())
    actual = await edge.blobs.size(Digest(digest))
    if actual is None:
        raise NotFound("no such blob", code="blob_missing", field="digest", value=digest)
    pieces: AsyncIterator[bytes] = edge.blobs.stream(Digest(digest))
    headers = {"content-length": str(actual), "etag": f'"{digest}"'}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
