"""What a container printed, kept by the agent in bounded files whose names carry offsets: `stdout.<offset of its first byte>`.

The newest are kept; offsets count from the stream's start even when the start is gone. One writer; it and the readers share the object.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torg_node.executors.port import LogChunk

STREAMS = ("stdout", "stderr")
_SEGMENTS = 8
_MIN_SEGMENT_BYTES = 4096
_MAX_CHUNK_BYTES = 256 << 10


@dataclass(slots=True)
class _Segment:
    path: Path
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


class LogFiles:
    """Both streams together take at most `limit_bytes` (at least two small segments)."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(_MIN_SEGMENT_BYTES, limit_bytes // _SEGMENTS)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._segments: dict[str, list[_Segment]] = {stream: [] for stream in STREAMS}
        for path in sorted(folder.iterdir()):
            stream, _dot, offset = path.name.partition(".")
            self._segments[stream].append(_Segment(path, int(offset), path.stat().st_size))

    def append(self, stream: str, data: bytes) -> None:
        while data:
            segment = self._active(stream)
            piece = data[: self._segment_bytes - segment.size_bytes]
            self._make_room(len(piece))
            with segment.path.open("ab") as file:
                file.write(piece)
            segment.size_bytes += len(piece)
            data = data[len(piece) :]

    def end(self, stream: str) -> int:
        """How many bytes the stream has had so far."""
        return self._segments[stream][-1].end if self._segments[stream] else 0

    def last_write_ms(self) -> int:
        times = [row[-1].path.stat().st_mtime_ns for row in self._segments.values() if row]
        return max(times, default=0) // 1_000_000

    def tail(self, stream: str, size_bytes: int) -> bytes:
        """The stream's last bytes, as many as are kept."""
        found = b""
        for segment in reversed(self._segments[stream]):
            found = segment.path.read_bytes() + found
            if len(found) >= size_bytes:
                break
        return found[-size_bytes:]

    def read(self, stream: str, cursor: int) -> LogChunk | None:
        """The next bytes at or after `cursor`; a higher offset where they are gone; None where there are none yet."""
        for segment in self._segments[stream]:
            if segment.end > cursor:
                start = max(cursor, segment.offset)
                with segment.path.open("rb") as file:
                    file.seek(start - segment.offset)
                    data = file.read(_MAX_CHUNK_BYTES)
                return LogChunk(stream, start, data, segment.path.stat().st_mtime_ns // 1_000_000)
        return None

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._segments = {stream: [] for stream in STREAMS}

    def _active(self, stream: str) -> _Segment:
        row = self._segments[stream]
        if not row or row[-1].size_bytes >= self._segment_bytes:
            offset = self.end(stream)
            path = self._folder / f"{stream}.{offset:020d}"
            path.touch(mode=0o600)
            row.append(_Segment(path, offset, 0))
        return row[-1]

    def _make_room(self, size_bytes: int) -> None:
        """Drops the oldest finished segments; of two streams, from the one that takes more."""
        while (
            sum(segment.size_bytes for row in self._segments.values() for segment in row) + size_bytes
            > self._limit_bytes
        ):
            largest = max(self._segments.values(), key=lambda row: sum(segment.size_bytes for segment in row[:-1]))
            if len(largest) < 2:
                return
            largest.pop(0).path.unlink(missing_ok=True)
