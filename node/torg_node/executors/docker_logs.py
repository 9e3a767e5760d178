"""A container's logs with byte offsets that survive restarts of the agent, from an engine that knows only times.

The engine keeps lines with nanosecond times and drops the oldest when the log is full. While following, this writes down now and
then at which time which byte offset was (a mark); a later follower asks for lines since a mark at or before its offset and
counts on from there, or back from the next mark where the engine has dropped lines. Offsets are exact as long as the engine dropped nothing that no follower had read. When more than the log's
limit is written while no agent runs, the dropped bytes are not counted: later offsets are then too low, never too high.

Engines repeat lines to a follower when they rotate a log under it; those are left out here.
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
_ENGINE_SPEAKS = 3  # the stream on which the engine itself says that it cannot read on
MARK_EVERY_BYTES = 64 << 10
_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line, or a piece of a long one. `stamp` is the engine's time text: fixed width, UTC, so it sorts as text."""

    stream: str
    stamp: str
    data: bytes


class LogBroken(Exception):
    """The engine stopped sending in its own words. Asking again from where it stopped helps."""


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
            payload = bytes(self._buffer[position + _HEADER_BYTES : end])
            if self._buffer[position] == _ENGINE_SPEAKS:
                raise LogBroken(payload.decode(errors="replace"))
            stamp, _blank, line = payload.partition(b" ")
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

    def has_after(self, stream: str, stamp: str) -> bool:
        return bool(self._marks[stream]) and self._marks[stream][-1][1] > stamp

    def last_before(self, stream: str, stamp: str) -> int:
        place = bisect.bisect_left(self._marks[stream], stamp, key=lambda mark: mark[1])
        return self._marks[stream][place - 1][0] if place else 0

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
    _newest: str = field(default="", init=False)
    _newest_is_whole: bool = field(default=False, init=False)
    _marked: str = field(default="", init=False)
    _adrift: list[LogRecord] = field(default_factory=list, init=False)  # lines whose offset the next mark will tell

    def __post_init__(self) -> None:
        self._go_to_mark()

    def resume(self) -> None:
        """After a broken connection: go on where the follower stands."""
        self.wanted_from = max(self.wanted_from, self.position)
        self._newest = ""
        self._adrift.clear()
        self._go_to_mark()

    def feed(self, record: LogRecord) -> list[LogChunk]:
        if record.stamp < self.since or self._is_repeated(record):
            return []
        is_first, opens_time = not self._newest, record.stamp != self._newest
        self._newest, self._newest_is_whole = record.stamp, record.data.endswith(b"\n")
        known = self.marks.offset_at(self.stream, record.stamp) if opens_time else None
        if known is not None:
            self.position = known - sum(len(held.data) for held in self._adrift)
        elif self._adrift or (is_first and self.marks.has_after(self.stream, record.stamp)):
            self._adrift.append(record)
            return []
        elif is_first:
            self.position = max(self.position, self.marks.last_before(self.stream, record.stamp))
        held, self._adrift = [*self._adrift, record], []
        return [chunk for each in held if (chunk := self._placed(each))]

    def _placed(self, record: LogRecord) -> LogChunk | None:
        if record.stamp != self._marked:
            self._marked = record.stamp
            self.marks.saw(self.stream, self.position, record.stamp)
        start, self.position = self.position, self.position + len(record.data)
        if self.position <= self.wanted_from:
            return None
        skipped = max(self.wanted_from - start, 0)
        return LogChunk(self.stream, start + skipped, record.data[skipped:], engine_time_ms(record.stamp))

    def _go_to_mark(self) -> None:
        mark = self.marks.at_or_before(self.stream, self.wanted_from)
        self.position, self.since = mark or (0, "")

    def _is_repeated(self, record: LogRecord) -> bool:
        """Only the pieces of one long line share a time, and only the last of them ends in a newline."""
        return record.stamp < self._newest or (record.stamp == self._newest and self._newest_is_whole)


async def chunks(received: AsyncIterator[bytes], cursors: dict[str, StreamCursor]) -> AsyncIterator[LogChunk]:
    """Neighbouring lines of one stream that came together leave together."""
    parser = FrameParser()
    async for data in received:
        pending: LogChunk | None = None
        for chunk in (chunk for record in parser.feed(data) for chunk in cursors[record.stream].feed(record)):
            if pending and pending.stream == chunk.stream and pending.offset + len(pending.data) == chunk.offset:
                pending = LogChunk(chunk.stream, pending.offset, pending.data + chunk.data, chunk.at_ms)
                continue
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
