# The shim imports this, and pathlib alone would cost it 6 ms per job.
# ruff: noqa: PTH108
"""What a container prints, kept in files of bounded size; offsets count from the stream's start even when the start is gone.

A stream is a row of segment files named `stdout.<offset of its first byte>`. When all segments together pass the limit the
oldest finished one is deleted. `container.follow_logs` reads them.
"""

from __future__ import annotations

import os

STREAMS = ("stdout", "stderr")
MIN_CHARGE_BYTES = 16 << 10  # a read costs about as much for one byte
SEGMENTS = 8
MIN_SEGMENT_BYTES = 4096
MAX_BYTES_PER_S = 32 << 20  # beyond it the writer has to wait: reading costs the host CPU that nobody pays for


def segment_name(stream: str, offset: int) -> str:
    return f"{stream}.{offset:020d}"


class LogWriter:
    """Keeps the newest `limit_bytes` of both streams together (at least two small segments)."""

    def __init__(self, directory: str, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(MIN_SEGMENT_BYTES, limit_bytes // SEGMENTS)
        self._active = {stream: _Segment(directory, stream, 0) for stream in STREAMS}
        self._finished: list[_Segment] = []
        self._kept_bytes = 0

    def write(self, stream: str, data: bytes) -> None:
        while data:
            segment = self._active[stream]
            if segment.size_bytes >= self._segment_bytes:
                segment = self._roll(segment)
            piece = data[: self._segment_bytes - segment.size_bytes]
            self._make_room(len(piece))
            segment.append(piece)
            self._kept_bytes += len(piece)
            data = data[len(piece) :]

    def close(self) -> None:
        for segment in self._active.values():
            segment.close()

    def _roll(self, segment: _Segment) -> _Segment:
        # The next segment exists before a reader can see this one as finished.
        following = _Segment(self._directory, segment.stream, segment.offset + segment.size_bytes)
        segment.close()
        self._finished.append(segment)
        self._active[segment.stream] = following
        return following

    def _make_room(self, size_bytes: int) -> None:
        while self._finished and self._kept_bytes + size_bytes > self._limit_bytes:
            oldest = self._finished.pop(0)
            self._kept_bytes -= oldest.size_bytes
            os.unlink(oldest.path)


class Throttle:
    """A token bucket on bytes, with a least charge per read. `pause_s` says how long to read nothing."""

    def __init__(self, now: float, bytes_per_s: int = MAX_BYTES_PER_S) -> None:
        self._bytes_per_s = bytes_per_s
        self._tokens = float(bytes_per_s)
        self._at = now

    def took(self, size_bytes: int, now: float) -> None:
        earned = (now - self._at) * self._bytes_per_s
        self._tokens = min(self._bytes_per_s, self._tokens + earned) - max(size_bytes, MIN_CHARGE_BYTES)
        self._at = now

    def pause_s(self, now: float) -> float:
        return max(0.0, -self._tokens / self._bytes_per_s - (now - self._at))


class _Segment:
    def __init__(self, directory: str, stream: str, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        self.size_bytes = 0
        self.path = f"{directory}/{segment_name(stream, offset)}"
        self._descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def append(self, data: bytes) -> None:
        while data:
            written = os.write(self._descriptor, data)
            self.size_bytes += written
            data = data[written:]

    def close(self) -> None:
        os.close(self._descriptor)
