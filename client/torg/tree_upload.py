"""A directory tree on its way to the store, packed and sent at the same time: read once, written nowhere, in constant memory.

One thread reads and packs (with workers of its own, see `torg_host.archive_pieces`); pieces that come out are asked about by the dozen, and those
that the store lacks are sent, a few at a time. What is in memory is bounded: packing waits for sending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from torg.transport import ByteProgress, Transport
from torg_host.archive import PackedTree, Piece, Sink
from torg_protocol.api import BlobUpload, MissingPieces
from torg_protocol.errors import Forbidden, Unavailable

Pack = Callable[[Sink], PackedTree]
"""Gives all pieces of a tree to a sink, in a thread; called once more when the store has lost some of them meanwhile."""

_PACKINGS = 3
_TRIES = 5  # of one piece
_PAUSE_S = 0.5
_ASKED_AT_ONCE = 8
_SENT_AT_ONCE = 4
_IN_MEMORY = 2 * _ASKED_AT_ONCE  # pieces, of 4 MiB at most


async def upload_tree(
    transport: Transport, pack: Pack, total_bytes: int, on_bytes: ByteProgress | None = None
) -> PackedTree:
    """Safe to repeat: what the store has already is not sent again. `total_bytes`: about how large the tree is; `on_bytes` is told of bytes of
    the tree. Raises what packing raises; Unavailable when the store stays away."""
    for _ in range(_PACKINGS):
        tree = await _Upload(transport, pack, total_bytes, on_bytes).run()
        body: dict[str, Any] = {"digest": tree.digest, "size_bytes": tree.size_bytes}
        if len(tree.pieces) > 1:
            body["pieces"] = [_named(piece) for piece in tree.pieces]
        answer = await transport.ask(BlobUpload, "POST", "/v1/blobs", body=body, safe_to_repeat=True)
        if answer.url is None and not answer.missing:
            if on_bytes:
                on_bytes(total_bytes, total_bytes)
            return tree
    raise Unavailable("the store keeps losing pieces of this upload", code="blob_store_unavailable", hint="try again")


@dataclass(frozen=True, slots=True)
class _Ready:
    piece: Piece
    frame: bytes
    tar_bytes: int


class _Stopped(Exception):
    pass


class _Upload:
    """One reading of the tree."""

    def __init__(self, transport: Transport, pack: Pack, total_bytes: int, on_bytes: ByteProgress | None) -> None:
        self._transport = transport
        self._pack = pack
        self._total, self._done, self._on_bytes = total_bytes, 0, on_bytes
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_IN_MEMORY)
        self._stopped = threading.Event()
        self._ready: asyncio.Queue[_Ready | None] = asyncio.Queue()
        self._wanted: asyncio.Queue[tuple[_Ready, str] | None] = asyncio.Queue()

    async def run(self) -> PackedTree:
        packing = asyncio.create_task(asyncio.to_thread(self._packed))
        moving = [asyncio.create_task(self._ask_for_all())]
        moving += [asyncio.create_task(self._send_wanted()) for _ in range(_SENT_AT_ONCE)]
        try:
            await asyncio.gather(*moving)
            return await packing
        finally:
            self._stopped.set()
            self._room.release()
            for task in moving:
                task.cancel()
            await asyncio.gather(packing, *moving, return_exceptions=True)

    def _packed(self) -> PackedTree:
        """In a thread of its own."""
        try:
            return self._pack(self._take)
        finally:
            self._loop.call_soon_threadsafe(self._ready.put_nowait, None)

    def _take(self, piece: Piece, frame: bytes, tar_bytes: int) -> None:
        self._room.acquire()
        if self._stopped.is_set():
            raise _Stopped
        self._loop.call_soon_threadsafe(self._ready.put_nowait, _Ready(piece, frame, tar_bytes))

    async def _ask_for_all(self) -> None:
        async for batch in self._batches():
            missing = await self._missing(batch)
            for item in batch:
                url = missing.pop(item.piece.digest, None)
                if url is None:
                    self._finished(item)
                else:
                    self._wanted.put_nowait((item, url))
        for _ in range(_SENT_AT_ONCE):
            self._wanted.put_nowait(None)

    async def _batches(self) -> AsyncIterator[list[_Ready]]:
        batch: list[_Ready] = []
        while (item := await self._ready.get()) is not None:
            batch.append(item)
            if len(batch) == _ASKED_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _missing(self, batch: list[_Ready]) -> dict[str, str]:
        """Where to send those that the store lacks. A piece that occurs twice is wanted once."""
        body = {"pieces": [_named(item.piece) for item in batch]}
        answer = await self._transport.ask(MissingPieces, "POST", "/v1/blobs/pieces", body=body, safe_to_repeat=True)
        return {item.digest: item.url for item in answer.missing}

    async def _send_wanted(self) -> None:
        while (wanted := await self._wanted.get()) is not None:
            await self._send(*wanted)
            self._finished(wanted[0])

    async def _send(self, item: _Ready, url: str) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                await self._transport.upload_bytes(url, item.frame)
            except (Unavailable, Forbidden) as error:
                is_expired = isinstance(error, Forbidden) and error.code == "blob_url_expired"
                if attempt == _TRIES or not (is_expired or isinstance(error, Unavailable)):
                    raise
            else:
                return
            await asyncio.sleep(_PAUSE_S * attempt)
            again = (await self._missing([item])).get(item.piece.digest)
            if again is None:  # it had arrived
                return
            url = again

    def _finished(self, item: _Ready) -> None:
        self._room.release()
        self._done = min(self._done + item.tar_bytes, self._total)
        if self._on_bytes:
            self._on_bytes(self._done, self._total)


def _named(piece: Piece) -> dict[str, Any]:
    return {"digest": piece.digest, "size_bytes": piece.size_bytes}
