"""Logs of a container: live, split by stream, with offsets that stay true over restarts and rotation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.engine import docker_executor, engine_socket, launch, limits, read_logs, text_of
from torg_node.executors.docker_logs import (
    MARK_EVERY_BYTES,
    FrameParser,
    LogBroken,
    LogMarks,
    LogRecord,
    StreamCursor,
    chunks,
    since_parameter,
)
from torg_node.executors.port import LogChunk

__all__ = ["engine_socket"]


def stamp(second: int, nanos: int = 0) -> str:
    return f"2026-03-01T10:00:{second:02d}.{nanos:09d}Z"


def frame(stream: int, text: bytes, at: str) -> bytes:
    payload = at.encode() + b" " + text
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


# --- pure -----------------------------------------------------------------------------------------------------------------


def test_frames_are_found_wherever_the_network_cuts_them() -> None:
    sent = frame(1, b"one two\n", stamp(1)) + frame(2, b"\x00\xff", stamp(2)) + frame(1, b"", stamp(3))
    for cut in range(len(sent)):
        parser = FrameParser()
        assert parser.feed(sent[:cut]) + parser.feed(sent[cut:]) == [
            LogRecord("stdout", stamp(1), b"one two\n"),
            LogRecord("stderr", stamp(2), b"\x00\xff"),
            LogRecord("stdout", stamp(3), b""),
        ]


async def test_lines_that_came_together_leave_together_but_never_across_streams(tmp_path: Path) -> None:
    marks = LogMarks(tmp_path / "marks")
    cursors = {name: StreamCursor(name, 0, marks) for name in ("stdout", "stderr")}

    async def received() -> AsyncIterator[bytes]:
        yield (
            frame(1, b"a\n", stamp(1))
            + frame(1, b"b\n", stamp(2))
            + frame(2, b"e\n", stamp(2))
            + frame(1, b"c\n", stamp(3))
        )

    found = [(chunk.stream, chunk.offset, chunk.data) async for chunk in chunks(received(), cursors)]
    assert found == [("stdout", 0, b"a\nb\n"), ("stderr", 0, b"e\n"), ("stdout", 4, b"c\n")]


def test_a_follower_gets_only_what_it_does_not_have(tmp_path: Path) -> None:
    cursor = StreamCursor("stdout", 7, LogMarks(tmp_path / "marks"))
    lines = [LogRecord("stdout", stamp(second), b"12345") for second in range(3)]

    assert [cursor.feed(line) for line in lines] == [
        [],
        [LogChunk("stdout", 7, b"345", 1772359201000)],
        [LogChunk("stdout", 10, b"12345", 1772359202000)],
    ]


def feed_all(cursor: StreamCursor, records: list[LogRecord]) -> list[tuple[int, bytes]]:
    return [(chunk.offset, chunk.data) for record in records for chunk in cursor.feed(record)]


def large_lines(count: int) -> list[LogRecord]:
    return [LogRecord("stdout", stamp(second), bytes([65 + second]) * MARK_EVERY_BYTES) for second in range(count)]


def test_a_restarted_follower_counts_on_from_a_mark_and_asks_only_for_what_came_since(tmp_path: Path) -> None:
    lines = large_lines(5)
    feed_all(StreamCursor("stdout", 0, LogMarks(tmp_path / "marks")), lines[:4])

    wanted = 3 * MARK_EVERY_BYTES + 10
    later = StreamCursor("stdout", wanted, LogMarks(tmp_path / "marks"))

    assert since_parameter({"stdout": later}) == "1772359203.000000000"
    assert feed_all(later, lines[3:]) == [
        (wanted, lines[3].data[10:]),
        (4 * MARK_EVERY_BYTES, lines[4].data),
    ]


def test_after_rotation_offsets_are_found_again_at_the_next_mark(tmp_path: Path) -> None:
    lines = large_lines(6)
    feed_all(StreamCursor("stdout", 0, LogMarks(tmp_path / "marks")), lines)

    # A follower from the start, when the engine has dropped the first four lines.
    later = StreamCursor("stdout", 0, LogMarks(tmp_path / "marks"))
    assert [offset for offset, _data in feed_all(later, lines[4:])] == [4 * MARK_EVERY_BYTES, 5 * MARK_EVERY_BYTES]


def test_lines_before_the_next_mark_are_counted_back_from_it(tmp_path: Path) -> None:
    lines = [LogRecord("stdout", stamp(second), b"x" * (MARK_EVERY_BYTES // 4)) for second in range(12)]
    feed_all(StreamCursor("stdout", 0, LogMarks(tmp_path / "marks")), lines)

    later = StreamCursor("stdout", 0, LogMarks(tmp_path / "marks"))
    found = feed_all(later, lines[6:])  # marks stand at lines 0, 4 and 8
    assert [offset for offset, _data in found] == [n * MARK_EVERY_BYTES // 4 for n in range(6, 12)]


def test_what_nobody_read_before_it_was_dropped_is_not_counted(tmp_path: Path) -> None:
    """The stated bound: offsets are then too low, never too high."""
    lines = large_lines(6)
    feed_all(StreamCursor("stdout", 0, LogMarks(tmp_path / "marks")), lines[:2])

    later = StreamCursor("stdout", 2 * MARK_EVERY_BYTES, LogMarks(tmp_path / "marks"))
    (first, _data), *_rest = feed_all(later, lines[4:])
    assert 0 < first <= 4 * MARK_EVERY_BYTES


def test_pieces_of_one_long_line_share_a_time_and_are_counted_each(tmp_path: Path) -> None:
    cursor = StreamCursor("stdout", 0, LogMarks(tmp_path / "marks"))
    pieces = [LogRecord("stdout", stamp(1), b"x" * MARK_EVERY_BYTES) for _ in range(3)]

    assert [offset for offset, _data in feed_all(cursor, pieces)] == [0, MARK_EVERY_BYTES, 2 * MARK_EVERY_BYTES]


def test_lines_that_the_engine_repeats_are_left_out(tmp_path: Path) -> None:
    cursor = StreamCursor("stdout", 0, LogMarks(tmp_path / "marks"))
    lines = [LogRecord("stdout", stamp(second), f"{second}\n".encode()) for second in range(5)]
    repeated = [*lines[:4], lines[3], lines[1], lines[2], lines[3], lines[4]]

    assert feed_all(cursor, repeated) == [(0, b"0\n"), (2, b"1\n"), (4, b"2\n"), (6, b"3\n"), (8, b"4\n")]


def test_the_engines_own_complaint_is_no_output() -> None:
    with pytest.raises(LogBroken, match="error grabbing logs"):
        FrameParser().feed(frame(3, b"error grabbing logs", stamp(1)))


# --- on a real engine -------------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.root
async def test_lines_arrive_while_the_job_runs(engine_socket: Path, tmp_path: Path) -> None:
    code = "import time; print('now', flush=True); time.sleep(3); print('then')"
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("live", ["python", "-c", code]))
        follower = executor.logs(handle)
        first = await anext(follower)
        at = time.monotonic()
        rest = [chunk async for chunk in follower]
        waited_s = time.monotonic() - at

    assert (first.stream, first.offset, first.data) == ("stdout", 0, b"now\n")
    assert [(chunk.offset, chunk.data) for chunk in rest] == [(4, b"then\n")]
    assert waited_s > 2
    assert abs(first.at_ms - handle.started_at_ms) < 2000


@pytest.mark.engine
@pytest.mark.root
async def test_any_bytes_and_lines_longer_than_the_engines_buffer_come_through(
    engine_socket: Path, tmp_path: Path
) -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 400); sys.stderr.buffer.write(b'no newline')"
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("bytes", ["python", "-c", code]))
        found = await read_logs(executor, handle)

    assert b"".join(chunk.data for chunk in found if chunk.stream == "stdout") == bytes(range(256)) * 400
    assert text_of(found, "stderr") == "no newline"


@pytest.mark.engine
@pytest.mark.root
async def test_a_second_agent_goes_on_where_the_first_stopped(engine_socket: Path, tmp_path: Path) -> None:
    code = "import time\nfor n in range(40): print(f'line {n:04d} ' + 'x' * 4000, flush=True); time.sleep(0.03)"
    async with docker_executor(engine_socket, tmp_path) as first:
        handle = await first.start(launch("two", ["python", "-c", code]))
        got = bytearray()
        async for chunk in first.logs(handle):
            got += chunk.data
            if len(got) > 80_000:
                break
        async with docker_executor(engine_socket, tmp_path) as second:
            rest = await read_logs(second, handle, stdout_from=len(got))

    assert rest[0].offset == len(got)
    whole = (bytes(got) + b"".join(chunk.data for chunk in rest)).decode()
    assert whole == "".join(f"line {n:04d} {'x' * 4000}\n" for n in range(40))


@pytest.mark.engine
@pytest.mark.root
async def test_the_log_is_bounded_and_keeps_the_newest_with_true_offsets(engine_socket: Path, tmp_path: Path) -> None:
    line_bytes, count, log_bytes = 1000, 3000, 1 << 20
    code = (
        "import time\n"
        f"for n in range({count}):\n"
        f"    print(f'{{n:08d}}'.ljust({line_bytes - 1}, '.'), flush=True)\n"
        "    if n % 100 == 0: time.sleep(0.02)\n"
    )
    async with docker_executor(engine_socket, tmp_path) as executor:
        small = limits(log_bytes=log_bytes)
        handle = await executor.start(launch("much", ["python", "-c", code], limits=small))
        live = await read_logs(executor, handle)
        await executor.wait(handle)
        again = await read_logs(executor, handle)
        folder = engine_socket.parent / "data" / "containers" / handle.ref / "local-logs"
        kept = sum(file.stat().st_size for file in folder.iterdir())

    assert sum(len(chunk.data) for chunk in live) == count * line_bytes
    assert log_bytes // 2 < kept <= log_bytes + 2 * line_bytes
    assert again[0].offset > 0
    assert again[-1].offset + len(again[-1].data) == count * line_bytes
    for chunk in again:
        assert chunk.offset % line_bytes == 0
        assert chunk.data.startswith(f"{chunk.offset // line_bytes:08d}".encode())


@pytest.mark.engine
@pytest.mark.root
async def test_following_a_silent_job_can_be_given_up(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("silent", ["sleep", "60"]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(executor.logs(handle))

        assert await executor.reattach(handle)
