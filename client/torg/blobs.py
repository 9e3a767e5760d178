"""Content-addressed transfer: what the store has is not sent, what arrives is checked before it gets its name."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from torg.errors import DigestMismatch
from torg.transport import ByteProgress, Transport
from torg.tree_upload import upload_tree
from torg_host.archive import PackedTree, Piece, digest_of_file, pack_into, size_of_tree
from torg_host.uploads import Upload
from torg_protocol.api import BlobDownload, BlobUpload
from torg_protocol.errors import Conflict, Forbidden, Unavailable
from torg_protocol.ids import hex_of
from torg_protocol.jobspec import BlobRef

_TRIES_WITHOUT_PROGRESS = 5
_PAUSE_S = 0.5
_AT_ONCE = 4


class BlobTransfer:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def store(
        self, digest: str, source: Path, on_bytes: ByteProgress | None = None, pieces: Sequence[Piece] = ()
    ) -> None:
        """Uploads what the store lacks of a file: all, or some of the pieces that make it up. Safe to repeat; a broken
        connection is tried again, and goes on after the last whole piece."""
        size = source.stat().st_size
        upload = Upload.of(digest, size, pieces)
        tries = 0
        while True:
            body = upload.request()
            answer = await self._transport.ask(BlobUpload, "POST", "/v1/blobs", body=body, safe_to_repeat=True)
            wanted = upload.wanted(answer)
            progress = _Sent(size, size - sum(piece.size_bytes for piece, _ in wanted), on_bytes)
            if not wanted:
                progress.add(0)
                return
            try:
                await self._send(source, wanted, progress)
            except (Unavailable, Forbidden) as error:
                if isinstance(error, Forbidden) and error.code != "blob_url_expired":
                    raise
                tries = tries + 1 if progress.is_as_before else 1
                if tries == _TRIES_WITHOUT_PROGRESS:
                    raise
                await asyncio.sleep(_PAUSE_S * tries)
                continue
            if answer.url is not None:
                return

    async def store_tree(self, root: Path, on_bytes: ByteProgress | None = None, *, ignore: bool = True) -> PackedTree:
        """Packs and uploads what the store lacks of a directory tree or of one file, both at once. Safe to repeat; a call after one that broke
        sends the rest. Raises what `torg_host.archive.pack_into` does."""
        size_bytes = await asyncio.to_thread(size_of_tree, root, ignore=ignore)
        return await upload_tree(self._transport, partial(pack_into, root=root, ignore=ignore), size_bytes, on_bytes)

    async def _send(self, source: Path, wanted: list[tuple[Piece, str]], progress: _Sent) -> None:
        waiting = iter(wanted)

        async def send() -> None:
            for piece, url in waiting:
                await self._transport.upload(url, source, piece.offset, piece.size_bytes, progress.add)

        connections = [asyncio.create_task(send()) for _ in range(min(_AT_ONCE, len(wanted)))]
        try:
            await asyncio.gather(*connections)
        finally:
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def fetch(self, digest: str, target: Path, scratch: Path, on_bytes: ByteProgress | None = None) -> None:
        """Downloads to `target`, which appears whole or not at all. `scratch`: a folder on the same file system for the part
        that has arrived; a later call goes on from there.

        Raises DigestMismatch, keeping nothing, when the bytes are not those named; Conflict `transfer_in_progress`.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = scratch / f".torg-{hex_of(digest)[:32]}.partial"
        with _alone(unfinished) as file:
            resumed = file.seek(0, 2) > 0
            pieces = await self._fill(digest, file, on_bytes)
            actual = await asyncio.to_thread(digest_of_file, unfinished, pieces)
            if actual != digest and resumed:  # the part from last time may have been damaged: once more, from nothing
                file.truncate(0)
                pieces = await self._fill(digest, file, on_bytes)
                actual = await asyncio.to_thread(digest_of_file, unfinished, pieces)
            if actual != digest:
                unfinished.unlink()
                raise DigestMismatch(
                    "the blob is not what its name says",
                    field="digest",
                    value=digest,
                    hint=f"got {actual}; nothing of it was kept",
                )
            unfinished.replace(target)

    async def _fill(self, digest: str, file: IO[bytes], on_bytes: ByteProgress | None) -> tuple[BlobRef, ...]:
        """Until all bytes are there. Every try asks for a fresh URL: signed ones expire. Returns the pieces, of a blob that they name."""
        tries, before = 0, -1
        while True:
            blob = await self._transport.ask(BlobDownload, "GET", f"/v1/blobs/{digest}")
            have = file.seek(0, 2)
            if have == blob.size_bytes:
                break
            if have > blob.size_bytes:
                file.truncate(0)
            try:
                await self._transport.download(blob.url, file, blob.size_bytes, on_bytes)
                break
            except (Unavailable, Forbidden) as error:
                if isinstance(error, Forbidden) and error.code != "blob_url_expired":
                    raise
                tries = tries + 1 if have <= before else 1
                before = max(before, have)
                if tries >= _TRIES_WITHOUT_PROGRESS:
                    raise
                await asyncio.sleep(_PAUSE_S * tries)
        file.flush()
        return blob.pieces


class _Sent:
    """Adds up what the connections of one upload have sent."""

    def __init__(self, total: int, known: int, on_bytes: ByteProgress | None) -> None:
        self._total = total
        self._known = self._done = known
        self._on_bytes = on_bytes

    @property
    def is_as_before(self) -> bool:
        return self._done == self._known

    def add(self, count: int) -> None:
        self._done += count
        if self._on_bytes:
            self._on_bytes(self._done, self._total)


@contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """The partial file, locked against a second download of the same blob. Never follows a link that somebody planted."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(partial, flags, 0o666)
    except OSError as error:
        raise Conflict(
            f"cannot write here: {error.strerror}",
            code="output_not_writable",
            field="path",
            value=str(partial),
            hint="name another folder, or get the right to write there",
        ) from error
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "another process is downloading this file to the same folder",
                code="transfer_in_progress",
                field="path",
                value=str(partial),
                hint="wait for it, or choose another folder",
            ) from None
        try:
            yield file
        except OSError as error:
            error.filename = error.filename or str(partial)  # of a full disk: which
            raise
