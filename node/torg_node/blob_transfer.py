"""Moves blobs between this node and the marketplace's store, by digest, through outages of the marketplace."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
from solders.keypair import Keypair

from torg_host.archive import PackedTree, Piece, digest_of_file
from torg_host.uploads import Upload, part_of
from torg_protocol.api import BlobDownload, BlobUpload
from torg_protocol.errors import Invalid, TooLarge, TorgError, from_problem
from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 15.0


class BlobTransfer:
    """Every transfer is repeated until it works, for hours if need be; only an answer that will not change ends it early.

    Cancel it to give up. Safe for many tasks of one loop.
    """

    def __init__(self, base_url: str, keypair: Keypair) -> None:
        self._keypair = keypair
        self._http = httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(60.0, connect=5.0), trust_env=False)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def store(self, path: Path, packed: PackedTree | None = None, *, based_on: Digest | None = None) -> BlobRef:
        """Uploads what the store lacks of a file; returns its name and size. `packed`: what `pack` said of it, if it made it. `based_on`: a
        blob that this node was given and that has pieces in common, whoever sent them."""
        size = path.stat().st_size
        digest = Digest(packed.digest if packed is not None else await asyncio.to_thread(digest_of_file, path))
        upload = Upload.of(digest, size, packed.pieces if packed is not None else (), based_on)

        async def once() -> BlobRef:
            while True:
                answer = BlobUpload.model_validate(await self._ask("POST", "/v1/blobs", upload.request()))
                for piece, url in upload.wanted(answer):
                    await self._put(url, path, piece)
                if not answer.missing:
                    return BlobRef(digest=digest, size_bytes=size)

        return await self._persistently(f"upload of {path.name}", once)

    async def _put(self, url: str, path: Path, piece: Piece) -> None:
        headers = {"content-length": str(piece.size_bytes)}
        _check(await self._http.put(url, content=part_of(path, piece.offset, piece.size_bytes), headers=headers))

    async def fetch(self, blob: BlobRef, path: Path, max_bytes: int | None = None) -> None:
        """Downloads to `path`. Raises Invalid `blob_digest_mismatch` when the store gives something else, TooLarge `blob_too_large` before anything is
        fetched."""

        async def once() -> None:
            download = BlobDownload.model_validate(await self._ask("GET", f"/v1/blobs/{blob.digest}", None))
            if max_bytes is not None and download.size_bytes > max_bytes:
                raise TooLarge(
                    "larger than this node takes",
                    code="blob_too_large",
                    field="digest",
                    value=blob.digest,
                    limit_bytes=max_bytes,
                )
            async with self._http.stream("GET", download.url) as response:
                if response.status_code >= 400:
                    await response.aread()
                    _check(response)
                with path.open("wb") as file:
                    async for piece in response.aiter_bytes(1 << 20):
                        file.write(piece)
            actual = await asyncio.to_thread(digest_of_file, path, download.pieces)
            if actual != blob.digest:
                path.unlink()
                raise Invalid(
                    "the store gave other bytes",
                    code="blob_digest_mismatch",
                    field="digest",
                    value=blob.digest,
                    hint=f"got {actual}",
                )

        await self._persistently(f"download of {blob.digest}", once)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._http.build_request(method, path, headers=headers, content=content or None)
        parts = RequestParts(method, request.headers["host"], path, "?", headers, content)
        request.headers.update(
            sign_request(self._keypair, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
        )
        response = await self._http.send(request)
        _check(response)
        return response.json()

    async def _persistently(self, what: str, once: Callable[[], Awaitable[T]]) -> T:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await once()
            except (httpx.HTTPError, TorgError) as error:
                if isinstance(error, TorgError) and error.status < 500 and error.code != "blob_url_expired":
                    raise
                log.warning("%s: %s; again in %.1f s", what, str(error) or type(error).__name__, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {"title": response.reason_phrase, "status": response.status_code, "code": "http_error"}
    error: TorgError = from_problem(problem)
    if response.status_code >= 500:
        raise httpx.HTTPError(str(error))
    raise error
