"""Content-addressed blobs in a folder or a bucket, behind URLs that this process signs.

An upload streams into a temporary file while it is hashed; only bytes that are what their name says get into the store. URLs carry an
expiry and an HMAC, so that a party that was once allowed to read or write one blob can do that, for a while, and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import quote

from pydantic import TypeAdapter

from torg_marketplace.storage.objects import Hash, Objects, bucket_objects, folder_objects, forget_unfinished, write_all
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Forbidden, Invalid, NotFound, TooLarge
from torg_protocol.ids import Digest, hex_of, is_digest, names_pieces
from torg_protocol.jobspec import BlobRef
from torg_protocol.pieces import digest_of_pieces

URL_LIFETIME_MS = 3_600_000
_BLOCK_BYTES = 1 << 20
_IN_MEMORY_BYTES = 5 << 20  # every piece is smaller
_LISTS = "lists/"  # folders beside the blobs': the pieces of those that are named by them,
_LISTS_OF_BYTES = "pieces/"  # and of those that are named by their bytes
_PIECES = TypeAdapter(tuple[BlobRef, ...])


class StoredBlobs:
    """The BlobStore of a marketplace. `base_url` is where its own HTTP server is reached from outside."""

    def __init__(self, objects: Objects, scratch: Path, secret: bytes, *, max_bytes: int) -> None:
        self._objects = objects
        self._scratch = scratch
        self._secret = secret
        self._max_bytes = max_bytes
        self.base_url = ""
        self.probe = objects.probe
        scratch.mkdir(parents=True, exist_ok=True)
        forget_unfinished(scratch)

    async def size(self, digest: Digest) -> int | None:
        size = None if names_pieces(digest) else await self._objects.size(_path(digest))
        if size is None and (pieces := await self._pieces(digest)) is not None:
            size = sum(piece.size_bytes for piece in pieces)
        return size

    async def upload_url(self, digest: Digest, size_bytes: int, account: str, now_ms: int) -> str:
        _check_digest(digest)
        self._check_size(size_bytes)
        return self._url("PUT", digest, size_bytes, account, now_ms)

    async def download_url(self, digest: Digest, now_ms: int) -> str:
        return self._url("GET", digest, 0, "", now_ms)

    def check_url(
        self, method: str, digest: str, size_bytes: int, account: str, expires_ms: int, signature: str, now_ms: int
    ) -> None:
        """Raises Forbidden (blob_url_invalid, blob_url_expired)."""
        _check_digest(digest)
        expected = self._sign(method, digest, size_bytes, account, expires_ms)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
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
        """Takes an upload. Raises Invalid (blob_digest_mismatch, blob_size_mismatch) or TooLarge; then nothing is stored."""
        if size_bytes <= _IN_MEMORY_BYTES:
            async for data in _blocks(pieces, size_bytes, size_bytes):
                await self._objects.put_checked(_path(digest), data, partial(_check_parts, digest, data))
            return
        hasher = hashlib.sha256()
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, dir=self._scratch)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                async for block in _blocks(pieces, size_bytes, _BLOCK_BYTES):
                    await asyncio.to_thread(_keep, block, hasher, file)
            _check_name(digest, "sha256:" + hasher.hexdigest())
            await self._objects.take(_path(digest), Path(name))
        finally:
            await asyncio.to_thread(Path(name).unlink, missing_ok=True)

    async def put_together(self, blob: BlobRef, pieces: Sequence[BlobRef]) -> None:
        """Stores the list of the pieces. No byte is stored twice; and none is read again when the list is what the blob is named by."""
        self._check_size(blob.size_bytes)
        if names_pieces(blob.digest):
            _check_name(blob.digest, digest_of_pieces(pieces))
            if sum(piece.size_bytes for piece in pieces) != blob.size_bytes:
                raise _wrong_size(blob.digest, blob.size_bytes)
        else:
            await self._check_bytes(blob, pieces)
        await self._objects.put(_list_path(blob.digest), _PIECES.dump_json(tuple(pieces)))

    async def _check_bytes(self, blob: BlobRef, pieces: Sequence[BlobRef]) -> None:
        """Nodes that speak version 1 name what they send in pieces by its bytes."""
        hasher = hashlib.sha256()
        for piece in pieces:
            try:
                await self._objects.hash_into(_path(piece.digest), hasher)
            except NotFound as error:
                raise _missing(piece.digest) from error
        _check_name(blob.digest, "sha256:" + hasher.hexdigest())

    async def stream(self, digest: Digest, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` on, in pieces. Raises NotFound."""
        size = None if names_pieces(digest) else await self._objects.size(_path(digest))
        found = self._stream_pieces(digest, start) if size is None else self._objects.stream(_path(digest), start, size)
        async with aclosing(found):
            async for data in found:
                yield data

    async def read(self, digest: Digest) -> bytes:
        return b"".join([piece async for piece in self.stream(digest)])

    async def fetch_to(self, digest: Digest, path: Path) -> None:
        with await asyncio.to_thread(path.open, "wb") as file:
            async for piece in self.stream(digest):
                file.write(piece)

    async def write(self, data: bytes) -> Digest:
        digest = sha256_digest(data)
        await self._objects.put(_path(digest), data)
        return digest

    async def stored_in_pieces(self) -> AsyncGenerator[Digest, None]:
        for folder, kind in ((_LISTS, "pieces"), (_LISTS_OF_BYTES, "sha256")):
            async for name in self._objects.names(folder.rstrip("/")):
                yield Digest(f"{kind}:{name.rpartition('/')[2]}")

    async def pieces_of(self, digest: Digest) -> tuple[BlobRef, ...]:
        return await self._pieces(digest) or ()

    async def forget(self, digest: Digest) -> None:
        """Safe to repeat."""
        if not names_pieces(digest):
            await self._objects.delete(_path(digest))
        await self._objects.delete(_list_path(digest))

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _pieces(self, digest: Digest) -> tuple[BlobRef, ...] | None:
        try:
            return _PIECES.validate_json(await self._objects.get(_list_path(digest)))
        except NotFound:
            return None

    async def _stream_pieces(self, digest: Digest, start: int) -> AsyncGenerator[bytes, None]:
        pieces = await self._pieces(digest)
        if pieces is None:
            raise _missing(digest)
        for piece in pieces:
            if start < piece.size_bytes:
                yield (await self._object(piece.digest))[start:]
            start = max(0, start - piece.size_bytes)

    async def _object(self, digest: Digest) -> bytes:
        try:
            return await self._objects.get(_path(digest))
        except NotFound as error:
            raise _missing(digest) from error

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise TooLarge(
                "this blob is too large",
                code="blob_too_large",
                field="size_bytes",
                value=size_bytes,
                hint=f"at most {self._max_bytes}",
            )

    def _url(self, method: str, digest: str, size_bytes: int, account: str, now_ms: int) -> str:
        expires_ms = now_ms + URL_LIFETIME_MS
        signature = self._sign(method, digest, size_bytes, account, expires_ms)
        whose = f"&account={quote(account, safe='')}" if account else ""
        return f"{self.base_url}/blobs/{digest}?size={size_bytes}&expires={expires_ms}{whose}&signature={signature}"

    def _sign(self, method: str, digest: str, size_bytes: int, account: str, expires_ms: int) -> str:
        text = f"torg-blob-url-v2\n{method}\n{digest}\n{size_bytes}\n{account}\n{expires_ms}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


async def _blocks(pieces: AsyncIterator[bytes], size_bytes: int, block_bytes: int) -> AsyncGenerator[list[bytes], None]:
    """What arrives, in blocks that are worth another thread's while. Raises TooLarge for more than was announced, Invalid for less."""
    received, block, room = 0, list[bytes](), block_bytes
    async for piece in pieces:
        received += len(piece)
        if received > size_bytes:
            raise TooLarge("more bytes than announced", code="blob_too_large", field="size_bytes", value=size_bytes)
        block.append(piece)
        room -= len(piece)
        if room <= 0 and received < size_bytes:
            yield block
            block, room = [], block_bytes
    if received < size_bytes:
        raise Invalid(
            "fewer bytes than announced",
            code="blob_size_mismatch",
            field="size_bytes",
            value=size_bytes,
            hint=f"{received} came",
        )
    yield block


def _keep(block: list[bytes], hasher: Hash, file: IO[bytes]) -> None:
    for data in block:
        hasher.update(data)
    write_all(file, block)


def _check_parts(digest: Digest, data: list[bytes]) -> None:
    hasher = hashlib.sha256()
    for part in data:
        hasher.update(part)
    _check_name(digest, "sha256:" + hasher.hexdigest())


def local_blobs(folder: Path, secret: bytes, *, max_bytes: int) -> StoredBlobs:
    return StoredBlobs(folder_objects(folder / "objects"), folder / "incoming", secret, max_bytes=max_bytes)


def bucket_blobs(url: str, endpoint: str | None, folder: Path, secret: bytes, *, max_bytes: int) -> StoredBlobs:
    """In a bucket (see `bucket_objects`); `folder` keeps uploads until they were checked."""
    return StoredBlobs(bucket_objects(url, endpoint), folder / "incoming", secret, max_bytes=max_bytes)


def _check_digest(digest: str) -> None:
    if not is_digest(digest):
        raise Invalid(
            "not a digest", code="digest_invalid", field="digest", value=digest, hint='"sha256:" and 64 hex digits'
        )


def _check_name(digest: Digest, actual: str) -> None:
    if actual != digest:
        raise Invalid(
            "the bytes are not what their name says",
            code="blob_digest_mismatch",
            field="digest",
            value=digest,
            hint=f"got {actual}",
        )


def _missing(digest: Digest) -> NotFound:
    return NotFound("no such blob", code="blob_missing", field="digest", value=digest)


def _wrong_size(digest: Digest, size_bytes: int) -> Invalid:
    return Invalid(
        "its pieces have another size", code="blob_size_mismatch", field="size_bytes", value=size_bytes, hint=digest
    )


def _list_path(digest: Digest) -> str:
    return (_LISTS if names_pieces(digest) else _LISTS_OF_BYTES) + _path(digest)


def _path(digest: Digest) -> str:
    """Two levels of folders, so that none of them gets too long."""
    _check_digest(digest)
    name = hex_of(digest)
    return f"{name[:2]}/{name[2:4]}/{name}"
