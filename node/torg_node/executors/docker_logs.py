"""The engine's log streams, understood: frames, times, and where in them a reader stood that comes back. Pure.

An engine knows only times, not offsets. A reader that comes back knows how many bytes it has, the last of them, and when they came;
`place_of` finds them in what the engine kept. Where the engine has dropped lines that nobody read, offsets after that are too low by
what was dropped, never too high.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from torg_node.executors.docker_exit import engine_time_ms

_STREAM_NAMES = {1: "stdout", 2: "stderr"}
_ENGINE_SPEAKS = 3  # the stream on which the engine itself says that it cannot read on
_HEADER_BYTES = 8
_MOST_PLACES = 10_000


class LogBroken(Exception):
    """The engine stopped sending, in its own words. Asking again from where it stopped helps."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line, or a piece of a long one. `stamp` is the engine's time text: fixed width, UTC, so it sorts as text."""

    stream: str
    stamp: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """The first line of the time `stamp` begins at byte `offset` of its stream."""

    stamp: str
    offset: int


class FrameParser:
    """The engine's multiplexed stream: an 8-byte header (stream, three zeros, length), then that many bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        self._buffer += data
        frames = []
        position = 0
        while len(self._buffer) - position >= _HEADER_BYTES:
            end = position + _HEADER_BYTES + int.from_bytes(self._buffer[position + 4 : position + 8], "big")
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[position + _HEADER_BYTES : end])
            if self._buffer[position] == _ENGINE_SPEAKS:
                raise LogBroken(payload.decode(errors="replace"))
            frames.append((_STREAM_NAMES[self._buffer[position]], payload))
            position = end
        del self._buffer[:position]
        return frames


def stamped(frame: tuple[str, bytes]) -> LogRecord:
    """A frame of a log that was asked for with times: the time, a blank, the bytes."""
    stream, payload = frame
    stamp, _blank, data = payload.partition(b" ")
    return LogRecord(stream, stamp.decode(), data)


@dataclass(slots=True)
class StreamCursor:
    """Takes one stream's lines from a place on and leaves out what the reader already has, and what the engine repeats."""

    place: Place
    wanted_from: int
    _position: int = -1
    _newest: str = ""
    _newest_is_whole: bool = False

    def feed(self, record: LogRecord) -> bytes:
        if record.stamp < self.place.stamp or self._is_repeated(record):
            return b""
        if self._position < 0:
            self._position = self.place.offset
        self._newest, self._newest_is_whole = record.stamp, record.data.endswith(b"\n")
        start, self._position = self._position, self._position + len(record.data)
        return record.data[max(self.wanted_from - start, 0) :]

    def _is_repeated(self, record: LogRecord) -> bool:
        """Engines repeat lines to a follower when they rotate the log under it. Only the pieces of one long line share a time,
        and only the last of them ends in a newline."""
        return record.stamp < self._newest or (record.stamp == self._newest and self._newest_is_whole)


def place_of(records: Sequence[LogRecord], *, tail: bytes, had_bytes: int, at_ms: int) -> Place:
    """Where a reader stood in one stream's kept `records`: it had `had_bytes`, the last of them `tail`, the last at `at_ms`.

    Output that repeats itself fits at several places: the one that is right if nothing was dropped, else the nearest in time.
    """
    if had_bytes == 0 or not records:
        return Place("", had_bytes)
    kept = b"".join(record.data for record in records)
    starts = list(itertools.accumulate((len(record.data) for record in records), initial=0))
    ends = [end for end in _ends_of(tail, kept) if end <= had_bytes]
    if not ends:
        return Place(records[0].stamp, had_bytes)

    def how_far(end: int) -> tuple[bool, int]:
        line = bisect.bisect_left(starts, end) - 1
        return end != had_bytes, abs(engine_time_ms(records[line].stamp) - at_ms)

    end = min(ends, key=how_far)
    stamp = records[bisect.bisect_left(starts, end) - 1].stamp
    first = next(number for number, record in enumerate(records) if record.stamp == stamp)
    return Place(stamp, had_bytes - (end - starts[first]))


def since_parameter(places: Sequence[Place]) -> str:
    """The engine's `since`: Unix seconds with nanoseconds, inclusive; "0" for everything."""
    earliest = min(place.stamp for place in places)
    if not earliest:
        return "0"
    seconds = int(datetime.fromisoformat(earliest[:19]).replace(tzinfo=UTC).timestamp())
    return f"{seconds}.{earliest[20:29]}"


def _ends_of(tail: bytes, kept: bytes) -> list[int]:
    """Where `tail` ends in `kept`; when it begins before what was kept, where the rest of it ends."""
    ends: list[int] = []
    found = kept.find(tail)
    while found >= 0 and len(ends) < _MOST_PLACES:
        ends.append(found + len(tail))
        found = kept.find(tail, found + 1)
    if not ends:
        ends = [size for size in range(min(len(tail), len(kept)), 0, -1) if kept.startswith(tail[-size:])][:1]
    return ends
