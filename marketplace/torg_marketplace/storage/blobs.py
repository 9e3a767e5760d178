"""Content-addressed blobs on obstore (a folder, S3, ...), behind URLs that this process signs.

An upload streams into a temporary file while it is hashed; only bytes that are what their name says get into the store. URLs carry an
expiry and an HMAC, so that a party that was once allowed to read or write one blob can do that, for a while, and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore, ObjectStore

from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Forbidden, Invalid, NotFound, TooLarge
from torg_protocol.ids import Digest, is_digest

URL_LIFETIME_MS = 3_600_000
_PIECE = 1 << 20


class StoredBlobs:
    """The BlobStore of a marketplace. `base_url` is where its own HTTP server is reached from outside."""

    def __init__(self, store: ObjectStore, scratch: Path, secret: bytes, *, max_bytes: int) -> None:
        self._store: Any = store
        self._scratch = scratch
        self._secret = secret
        self._max_bytes = max_bytes
        self.base_url = ""
        scratch.mkdir(parents=True, exist_ok=True)

    async def size(self, digest: Digest) -> int | None:
        try:
            head = await obstore.head_async(self._store, _path(digest))
        except FileNotFoundError:
            return None
        return int(head["size"])

    async def upload_url(self, digest: Digest, size_bytes: int, now_ms: int) -> str | None:
        _check_digest(digest)
        if size_bytes > self._max_bytes:
            raise TooLarge(
                "this blob is too large",
                code="blob_too_large",
                field="size_bytes",
                value=size_bytes,
                hint=f"at most {self._max_bytes}",
            )
        if await self.size(digest) is not None:
            return None
        return self._url("PUT", digest, size_bytes, now_ms)

    async def download_url(self, digest: Digest, now_ms: int) -> str:
        return self._url("GET", digest, 0, now_ms)

    def check_url(
        self, method: str, digest: str, size_bytes: int, expires_ms: int, signature: str, now_ms: int
    ) -> None:
        """Raises Forbidden (blob_url_invalid, blob_url_expired)."""
        _check_digest(digest)
        if not hmac.compare_digest(self._sign(method, digest, size_bytes, expires_ms).encode(), signature.encode()):
            raise Forbidden("this URL was not signed by this store", code="blob_url_invalid", field="signature")
        if expires_ms < now_ms:
            raise Forbidden(
                "this URL has expired",
                code="blob_url_expired",
                field="expires",
                value=expires_ms,
                hint="ask for a new one",
            )

    async def receive(self, digest: Digest, size_bytes: int, pieces: AsyncIterator[bytes]) -> None:
        """Takes an upload. Raises Invalid blob_digest_mismatch or TooLarge; then nothing is stored."""
        hasher, received = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            async for piece in pieces:
                received += len(piece)
                if received > size_bytes:
                    raise TooLarge(
                        "more bytes than announced", code="blob_too_large", field="size_bytes", value=size_bytes
                    )
                hasher.update(piece)
                file.write(piece)
            file.flush()
            actual = "sha256:" + hasher.hexdigest()
            if actual != digest:
                raise Invalid(
                    "the bytes are not what their name says",
                    code="blob_digest_mismatch",
                    field="digest",
                    value=digest,
                    hint=f"got {actual}",
                )
            await obstore.put_async(self._store, _path(digest), Path(file.name))

    async def stream(self, digest: Digest, start: int = 0) -> AsyncIterator[bytes]:
        """The bytes from `start` on, in pieces. Raises NotFound."""
        options: Any = {"range": {"offset": start}} if start else None
        try:
            result = await obstore.get_async(self._store, _path(digest), options=options)
        except FileNotFoundError:
            raise NotFound("no such blob", code="blob_missing", field="digest", value=digest) from None
        async for piece in result.stream(min_chunk_size=_PIECE):
            yield bytes(piece)

    async def read(self, digest: Digest) -> bytes:
        return b"".join([piece async for piece in self.stream(digest)])

    async def fetch_to(self, digest: Digest, path: Path) -> None:
        with await asyncio.to_thread(path.open, "wb") as file:
            async for piece in self.stream(digest):
                file.write(piece)

    async def write(self, data: bytes) -> Digest:
        digest = sha256_digest(data)
        await obstore.put_async(self._store, _path(digest), data)
        return digest

    def _url(self, method: str, digest: str, size_bytes: int, now_ms: int) -> str:
        expires_ms = now_ms + URL_LIFETIME_MS
        signature = self._sign(method, digest, size_bytes, expires_ms)
        return f"{self.base_url}/blobs/{digest}?size={size_bytes}&expires={expires_ms}&signature={signature}"

    def _sign(self, method: str, digest: str, size_bytes: int, expires_ms: int) -> str:
        text = f"torg-blob-url-v1\n{method}\n{digest}\n{size_bytes}\n{expires_ms}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def local_blobs(folder: Path, secret: bytes, *, max_bytes: int) -> StoredBlobs:
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    return StoredBlobs(LocalStore(folder / "objects"), folder / "incoming", secret, max_bytes=max_bytes)


def _check_digest(digest: str) -> None:
    if not is_digest(digest):
        raise Invalid(
            "not a digest", code="digest_invalid", field="digest", value=digest, hint='"sha256:" and 64 hex digits'
        )


def _path(digest: Digest) -> str:
    """Two levels of folders, so that none of them gets too long."""
    _check_digest(digest)
    name = digest.removeprefix("sha256:")
    return f"{name[:2]}/{name[2:4]}/{name}"
