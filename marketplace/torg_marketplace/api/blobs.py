"""Blobs: ask (authenticated) for a URL, then move the bytes there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from torg_marketplace.api.auth import DataReader, DataWriter
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.blobs import may_read_blob, plan_pieces, plan_upload
from torg_protocol.api import BlobDownload, BlobPieces, BlobUpload, BlobUploadRequest, MissingPieces
from torg_protocol.errors import NotFound
from torg_protocol.ids import DIGEST, Digest, names_pieces

router = APIRouter(tags=["data"], route_class=StrictRoute)
DigestPath = Annotated[str, Path(pattern=DIGEST)]
Bytes = Annotated[int, Query(ge=0, le=2**63 - 1)]


@router.post("/v1/blobs")
async def post_blob(body: BlobUploadRequest, caller: DataWriter, edge: TheEdge) -> BlobUpload:
    """Where to PUT these bytes, or those of its pieces that this account never sent; no URL at all when none is needed. Safe to repeat."""
    return await plan_upload(edge.market, caller.account, body)


@router.post("/v1/blobs/pieces")
async def post_pieces(body: BlobPieces, caller: DataWriter, edge: TheEdge) -> MissingPieces:
    """Where to PUT these pieces of a blob that is still being packed, but for those that this account has sent before. Safe to repeat."""
    return await plan_pieces(edge.market, caller.account, body)


@router.get("/v1/blobs/{digest}")
async def get_blob(digest: DigestPath, caller: DataReader, edge: TheEdge) -> BlobDownload:
    """Where to GET these bytes, for those who may read them: uploader, client of a job that uses them, node with its lease."""
    name = Digest(digest)
    async with edge.market.reading() as unit:
        allowed = await may_read_blob(unit, caller.account, name)
    size = await edge.market.blobs.size(name) if allowed else None
    if size is None:
        raise NotFound("no such blob that you may read", code="blob_missing", field="digest", value=digest)
    url = await edge.market.blobs.download_url(name, edge.market.clock.now_ms())
    pieces = await edge.market.blobs.pieces_of(name) if names_pieces(name) else ()
    return BlobDownload(digest=name, size_bytes=size, url=url, pieces=pieces)


@router.put("/blobs/{digest}", status_code=204)
async def put_bytes(
    digest: DigestPath,
    size: Bytes,
    expires: Bytes,
    account: Annotated[str, Query(max_length=64)],
    signature: Annotated[str, Query(max_length=64)],
    request: Request,
    edge: TheEdge,
) -> Response:
    """The bytes themselves, to a signed URL. Refused, and nothing stored, unless they are what the digest says."""
    edge.blobs.check_url("PUT", digest, size, account, expires, signature, edge.market.clock.now_ms())
    await edge.blobs.receive(Digest(digest), size, request.stream())
    await edge.uploads.note(edge.market, account, Digest(digest), size)
    return Response(status_code=204)


@router.get("/blobs/{digest}", response_class=StreamingResponse)
async def get_bytes(
    digest: DigestPath,
    size: Bytes,
    expires: Bytes,
    signature: Annotated[str, Query(max_length=64)],
    edge: TheEdge,
    range_: Annotated[str | None, Header(alias="range", description="one range from a byte on: bytes=N-")] = None,
) -> StreamingResponse:
    """The bytes, from a signed URL; with Range from a byte on, so that a download resumes."""
    edge.blobs.check_url("GET", digest, size, "", expires, signature, edge.market.clock.now_ms())
    total = await edge.blobs.size(Digest(digest))
    if total is None:
        raise NotFound("no such blob", code="blob_missing", field="digest", value=digest)
    start = _start_of(range_, total)
    pieces: AsyncIterator[bytes] = edge.blobs.stream(Digest(digest), start or 0)
    headers = {"content-length": str(total - (start or 0)), "etag": f'"{digest}"', "accept-ranges": "bytes"}
    if start is not None:
        headers["content-range"] = f"bytes {start}-{total - 1}/{total}"
    status = 200 if start is None else 206
    return StreamingResponse(pieces, status, media_type="application/octet-stream", headers=headers)


def _start_of(range_: str | None, total: int) -> int | None:
    """Where an open range begins; None, which means the whole, for every other form (RFC 9110 lets a server ignore them)."""
    match = re.fullmatch(r"bytes=(\d{1,18})-", range_ or "", re.ASCII)
    return int(match[1]) if match is not None and int(match[1]) < total else None
