"""A container's logs with byte offsets that survive restarts of the agent, from an engine that knows only times.

The engine keeps lines with nanosecond times and drops the oldest when the log is full. While following, this writes down now and
then at which time which byte offset was (a mark); a later follower asks for lines since a mark at or before its offset and
counts on from there. Offsets are exact as long as the engine dropped nothing that no follower had read. When more than the log's
limit is written while no agent runs, the dropped bytes are not counted: later offsets are then too low, never too high.

The engine ends a last line without a newline with one of its own, which counts.
"""

from __future__ import annotations

import bisect
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from torg_node.executors.docker_exit import engine_time_ms
from torg_node.executors.port import LogChunk

STREAMS = {1: "stdout", 2: "stderr"}
MARK_EVERY_BYTES = 64 << 10
_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line, or a piece of a long one. `stamp` is the engine's time text: fixed width, UTC, so it sorts as text."""

    stream: str
    stamp: str
    data: bytes


class FrameParser:
    """The engine's multiplexed stream: an 8-byte header (stream, three zeros, length), a time, a blank, the bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[LogRecord]:
        self._buffer += data
        records = []
        position = 0
        while len(self._buffer) - position >= _HEADER_BYTES:
            length = int.from_bytes(self._buffer[position + 4 : position + 8], "big")
            end = position + _HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            stamp, _blank, line = bytes(self._buffer[position + _HEADER_BYTES : end]).partition(b" ")
            records.append(LogRecord(STREAMS[self._buffer[position]], stamp.decode(), line))
            position = end
        del self._buffer[:position]
        return records


class LogMarks:
    """For each stream, which time stood at which offset; appended to a small file, so a restarted agent has them too."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._marks: dict[str, list[tuple[int, str]]] = {name: [] for name in STREAMS.values()}
        if file.exists():
            for line in file.read_text().splitlines():
                stream, offset, stamp = line.split(" ")
                self._marks[stream].append((int(offset), stamp))

    def at_or_before(self, stream: str, offset: int) -> tuple[int, str] | None:
        place = bisect.bisect_right(self._marks[stream], offset, key=lambda mark: mark[0])
        return self._marks[stream][place - 1] if place else None

    def offset_at(self, stream: str, stamp: str) -> int | None:
        place = bisect.bisect_left(self._marks[stream], stamp, key=lambda mark: mark[1])
        marks = self._marks[stream]
        return marks[place][0] if place < len(marks) and marks[place][1] == stamp else None

    def saw(self, stream: str, offset: int, stamp: str) -> None:
        """Keeps a mark when the last one is far enough away. Only the first line of a time may be marked."""
        marks = self._marks[stream]
        if marks and (offset < marks[-1][0] + MARK_EVERY_BYTES or stamp <= marks[-1][1]):
            return
        marks.append((offset, stamp))
        with self._file.open("a") as file:
            file.write(f"{stream} {offset} {stamp}\n")


@dataclass(slots=True)
class StreamCursor:
    """Turns one stream's lines into chunks with offsets, leaving out what the follower already has."""

    stream: str
    wanted_from: int
    marks: LogMarks
    since: str = ""  # lines before this time are not ours to count
    position: int = 0
    _last_stamp: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if mark := self.marks.at_or_before(self.stream, self.wanted_from):
            self.position, self.since = mark

    def feed(self, record: LogRecord) -> LogChunk | None:
        if record.stamp < self.since:
            return None
        first_of_its_time, self._last_stamp = record.stamp != self._last_stamp, record.stamp
        if first_of_its_time:
            known = self.marks.offset_at(self.stream, record.stamp)
            if known is not None:
                self.position = known
            self.marks.saw(self.stream, self.position, record.stamp)
        start, self.position = self.position, self.position + len(record.data)
        if self.position <= self.wanted_from:
            return None
        skipped = max(self.wanted_from - start, 0)
        return LogChunk(self.stream, start + skipped, record.data[skipped:], engine_time_ms(record.stamp))

    def resume(self) -> None:
        """After a broken connection: go on where the follower stands."""
        self.wanted_from = max(self.wanted_from, self.position)
        self._last_stamp = ""
        if mark := self.marks.at_or_before(self.stream, self.wanted_from):
            self.position, self.since = mark
        else:
            self.position = 0


async def chunks(received: AsyncIterator[bytes], cursors: dict[str, StreamCursor]) -> AsyncIterator[LogChunk]:
    """Neighbouring lines of one stream that came together leave together."""
    parser = FrameParser()
    async for data in received:
        pending: LogChunk | None = None
        for record in parser.feed(data):
            chunk = cursors[record.stream].feed(record)
            if chunk is None:
                continue
            if pending and pending.stream == chunk.stream and pending.offset + len(pending.data) == chunk.offset:
                pending = LogChunk(chunk.stream, pending.offset, pending.data + chunk.data, chunk.at_ms)
            else:
                if pending:
                    yield pending
                pending = chunk
        if pending:
            yield pending


def since_parameter(cursors: dict[str, StreamCursor]) -> str:
    """The engine's `since`: Unix seconds with nanoseconds, inclusive; "0" for everything."""
    earliest = min(cursor.since for cursor in cursors.values())
    if not earliest:
        return "0"
    seconds = int(datetime.fromisoformat(earliest[:19] + "+00:00").timestamp())
    return f"{seconds}.{earliest[20:29]}"
