"""What the job says: its two log streams by byte offset, and its progress file. Best effort; the whole log goes with the report."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from torg_node.executors.port import Handle, LogChunk
from torg_node.lease import Lease
from torg_protocol.messages import LogLines, Progress

_POLL_S = 0.25
_PROGRESS_EVERY_S = 0.2
_MAX_LINE_BYTES = 16 << 10
_MAX_MESSAGE_BYTES = 32 << 10
_READ_AT_ONCE_BYTES = 1 << 20  # of a progress file


def _one_for_one(error: UnicodeError) -> tuple[str, int]:
    """A question mark per byte that is not UTF-8, so that offsets in bytes stay true."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "?" * (error.end - error.start), error.end


codecs.register_error("torg-one-for-one", _one_for_one)


async def follow_logs(
    lease: Lease, handle: Handle, ended: asyncio.Event, *, task: str | None = None, run: int = 1
) -> None:
    """Until the container has ended and all was read. After a restart it begins anew: the marketplace knows what it has. What a sealed job
    says goes with the report, encrypted, and not before."""
    if lease.spec.sealed is not None:
        return
    await pass_on(lease, lease.node.executor.logs(handle), ended, {"task": task, "run": run})


async def pass_on(
    lease: Lease, chunks: AsyncIterator[LogChunk], ended: asyncio.Event, said_by: Mapping[str, str | int | None]
) -> None:
    """In whole characters, in pieces that a message holds."""
    kept = {"stdout": b"", "stderr": b""}
    async for chunk in chunks:
        offset, data = chunk.offset - len(kept[chunk.stream]), kept[chunk.stream] + chunk.data
        whole = _whole_characters(data)
        kept[chunk.stream] = data[whole:]
        for start in range(0, whole, _MAX_MESSAGE_BYTES):
            piece = data[start : min(start + _MAX_MESSAGE_BYTES, whole)]
            await _send_log(lease, ended, chunk.stream, offset + start, piece, said_by)
        if len(kept[chunk.stream]) > 3:  # not an unfinished character, just bytes
            await _send_log(lease, ended, chunk.stream, offset + whole, kept[chunk.stream], said_by)
            kept[chunk.stream] = b""


async def _send_log(
    lease: Lease, ended: asyncio.Event, stream: str, offset: int, data: bytes, said_by: Mapping[str, str | int | None]
) -> None:
    """Waits for a connection while the job runs: the marketplace takes a later piece as a gap. Once the job has ended nothing waits."""
    text = data.decode("utf-8", errors="torg-one-for-one")
    lines = {
        "lease_id": lease.id,
        "fence": lease.grant.fence,
        "at_ms": lease.node.now_ms(),
        "stream": stream,
        "offset": offset,
        "text": text,
        **said_by,
    }
    message = LogLines.model_validate(lines)
    while not await lease.node.send(message):
        if ended.is_set():
            lease.log_was_cut = True
            return
        await _sleep_until(ended, _POLL_S)


def _whole_characters(data: bytes) -> int:
    """How many bytes end with a whole character: up to three trailing ones may be the start of the next."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
        if byte < 0x80:
            break
    return len(data)


async def follow_progress(lease: Lease, ended: asyncio.Event) -> None:
    """Passes on the newest line of the job's progress file, a few times a second at most. Lines that are not JSON objects
    are the job's problem and are left out. A sealed job's are its own."""
    if lease.spec.sealed is not None:
        return
    path, position, sent = lease.files / "torg" / "progress.jsonl", 0, 0.0
    loop = asyncio.get_running_loop()
    while True:
        last = ended.is_set()
        newest, position = await asyncio.to_thread(_newest_line, path, position)
        if newest is not None and (last or loop.time() - sent >= _PROGRESS_EVERY_S):
            sent = loop.time()
            await lease.node.send(
                Progress(
                    lease_id=lease.id, fence=lease.grant.fence, at_ms=lease.node.now_ms(), kind="step", data=newest
                )
            )
        if last:
            return
        await _sleep_until(ended, _POLL_S)


def _newest_line(path: Path, position: int) -> tuple[dict[str, Any] | None, int]:
    """The last whole line after `position` that is a JSON object, and where to go on. The file is the job's to make: a link out of the disk is
    not followed, a pipe not waited for, and of what was written since no more than the end is read."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None, position
            begin = max(position, status.st_size - _READ_AT_ONCE_BYTES)
            file.seek(begin)
            data = file.read(_READ_AT_ONCE_BYTES)
    except OSError:
        return None, position
    whole = data.rfind(b"\n") + 1
    if not whole:
        return None, position
    lines = data[:whole].split(b"\n")[begin > position :]  # without the rest of a line whose start was passed over
    return next((found for line in reversed(lines) if (found := _object(line))), None), begin + whole


def _object(line: bytes) -> dict[str, Any] | None:
    if len(line) > _MAX_LINE_BYTES:
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


async def _sleep_until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
