"""Output of a container: live, split by stream, byte for byte, with offsets that stay true over restarts and rotation."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from tests.support.engine import docker_executor, launch, limits
from tests.support.job_logs import read_logs, text_of
from torg_node.executors.docker_log_files import LogFiles
from torg_node.executors.docker_logs import (
    FrameParser,
    LogBroken,
    LogRecord,
    Place,
    StreamCursor,
    place_of,
    since_parameter,
    stamped,
)
from torg_node.executors.port import LogChunk

AT_MS = 1772359200000  # 2026-03-01T10:00:00Z


def stamp(second: int, nanos: int = 0) -> str:
    return f"2026-03-01T10:00:{second:02d}.{nanos:09d}Z"


def frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def lines(*texts: str, stream: str = "stdout") -> list[LogRecord]:
    return [LogRecord(stream, stamp(second), text.encode()) for second, text in enumerate(texts)]


# --- pure -----------------------------------------------------------------------------------------------------------------


def test_frames_are_found_wherever_the_network_cuts_them() -> None:
    sent = frame(1, b"one two\n") + frame(2, b"\x00\xff") + frame(1, b"")
    for cut in range(len(sent)):
        parser = FrameParser()
        assert parser.feed(sent[:cut]) + parser.feed(sent[cut:]) == [
            ("stdout", b"one two\n"),
            ("stderr", b"\x00\xff"),
            ("stdout", b""),
        ]


def test_a_line_is_parted_from_its_time() -> None:
    assert stamped(("stderr", stamp(1).encode() + b" two words\n")) == LogRecord("stderr", stamp(1), b"two words\n")


def test_the_engines_own_complaint_is_no_output() -> None:
    with pytest.raises(LogBroken, match="error grabbing logs"):
        FrameParser().feed(frame(3, b"error grabbing logs"))


def test_a_reader_gets_only_what_it_does_not_have() -> None:
    cursor = StreamCursor(Place(stamp(1), 3), wanted_from=8)

    assert [cursor.feed(line) for line in lines("aa\n", "bbb\n", "ccc\n", "d\n")] == [b"", b"", b"cc\n", b"d\n"]


def test_lines_that_the_engine_repeats_are_left_out() -> None:
    cursor = StreamCursor(Place("", 0), wanted_from=0)
    a, b, c, d = lines("a\n", "b\n", "c\n", "d\n")

    assert b"".join(cursor.feed(line) for line in (a, b, c, c, b, c, a, d)) == b"a\nb\nc\nd\n"


def test_pieces_of_one_long_line_share_a_time_and_are_all_taken() -> None:
    cursor = StreamCursor(Place("", 0), wanted_from=0)
    pieces = [LogRecord("stdout", stamp(1), data) for data in (b"xx", b"xx", b"x\n")]

    assert b"".join(cursor.feed(piece) for piece in pieces) == b"xxxxx\n"


@pytest.mark.parametrize(
    ("had", "tail", "at_ms", "place"),
    [
        (0, "", 0, Place("", 0)),
        (3, "a1\n", AT_MS, Place(stamp(0), 0)),
        (6, "a1\nb2\n", AT_MS + 1000, Place(stamp(1), 3)),
        (8, "2\nc3", AT_MS + 2000, Place(stamp(2), 6)),  # in the middle of a line
        (1006, "..a1\nb2\n", AT_MS + 1000, Place(stamp(1), 1003)),  # the tail begins before what was kept
        (1000, "gone\n", AT_MS, Place(stamp(0), 1000)),  # everything kept is new; what was dropped is not counted
    ],
)
def test_a_reader_that_comes_back_finds_its_place(had: int, tail: str, at_ms: int, place: Place) -> None:
    assert place_of(lines("a1\n", "b2\n", "c3\n"), tail=tail.encode(), had_bytes=had, at_ms=at_ms) == place


def test_in_output_that_repeats_itself_the_count_decides_and_else_the_time() -> None:
    dots = lines(*[".\n"] * 30)

    assert place_of(dots, tail=b".\n.\n", had_bytes=20, at_ms=AT_MS) == Place(stamp(9), 18)
    assert place_of(dots, tail=b".\n.\n", had_bytes=1001, at_ms=AT_MS + 12_000) == Place(stamp(12), 999)


def test_the_engine_is_asked_from_the_earliest_place() -> None:
    assert since_parameter([Place(stamp(3, 7), 9), Place(stamp(2, 5), 1)]) == "1772359202.000000005"
    assert since_parameter([Place(stamp(3, 7), 9), Place("", 0)]) == "0"


def test_files_keep_the_newest_and_count_from_the_start(tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "logs", 64 << 10)
    for number in range(1000):
        files.append("stdout", f"{number:0255d}\n".encode())
    files.append("stderr", b"only line\n")

    assert files.end("stdout") == 256_000
    assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) <= 64 << 10
    for reader in (files, LogFiles(tmp_path / "logs", 64 << 10)):  # the second as a restarted agent has it
        chunk = reader.read("stdout", 0)
        assert chunk is not None
        assert chunk.offset > 0
        assert chunk.data.startswith(f"{chunk.offset // 256:0255d}\n".encode()[chunk.offset % 256 :])
        assert reader.read("stdout", 256_000) is None
        assert reader.tail("stdout", 300) == (f"{998:0255d}\n{999:0255d}\n".encode())[-300:]
        stderr = reader.read("stderr", 5)
        assert stderr == LogChunk("stderr", 5, b"line\n", stderr.at_ms if stderr else 0)


# --- on a real engine -------------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.root
async def test_lines_arrive_while_the_job_runs(engine_socket: Path, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('then', flush=True)))\n"
        "print('now', flush=True); time.sleep(600)"
    )
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("live", ["python", "-c", code]))
        follower = executor.logs(handle)
        async with asyncio.timeout(150):
            first = await anext(follower)
            await executor.stop(handle, 30_000)
            rest = [chunk async for chunk in follower]

    assert (first.stream, first.offset, first.data) == ("stdout", 0, b"now\n")
    assert [(chunk.offset, chunk.data) for chunk in rest] == [(4, b"then\n")]
    assert abs(first.at_ms - handle.started_at_ms) < 20_000


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
            if len(got) > 60_000:
                break
        await first.close()
        await asyncio.sleep(0.3)  # the job goes on without an agent
        async with docker_executor(engine_socket, tmp_path) as second:
            rest = await read_logs(second, handle, stdout_from=len(got))

    assert rest[0].offset == len(got)
    whole = (bytes(got) + b"".join(chunk.data for chunk in rest)).decode()
    assert whole == "".join(f"line {n:04d} {'x' * 4000}\n" for n in range(40))


@pytest.mark.engine
@pytest.mark.root
async def test_the_log_is_bounded_and_keeps_the_newest_with_true_offsets(engine_socket: Path, tmp_path: Path) -> None:
    line_bytes, count, log_bytes = 1000, 6000, 1 << 20
    code = f"for n in range({count}): print(f'{{n:08d}}'.ljust({line_bytes - 1}, '.'))"
    whole = "".join(f"{n:08d}".ljust(line_bytes - 1, ".") + "\n" for n in range(count)).encode()
    async with docker_executor(engine_socket, tmp_path) as executor:
        small = limits(log_bytes=log_bytes)
        handle = await executor.start(launch("much", ["python", "-c", code], limits=small))
        await executor.wait(handle)
        found = await read_logs(executor, handle)
        engines = engine_socket.parent / "data" / "containers" / handle.ref / "local-logs"
        kept = [
            sum(file.stat().st_size for file in folder.iterdir())
            for folder in (engines, tmp_path / handle.ref / "logs")
        ]

    assert found[0].offset > 0
    assert b"".join(chunk.data for chunk in found) == whole[found[0].offset :]
    assert all(log_bytes // 2 < size_bytes <= log_bytes + 2 * line_bytes for size_bytes in kept)


@pytest.mark.engine
@pytest.mark.root
async def test_a_live_follower_loses_nothing_of_a_burst_larger_than_its_log(
    engine_socket: Path, tmp_path: Path
) -> None:
    code = "import time; time.sleep(0.5)\nfor n in range(12000): print(f'{n:08d}'.ljust(999, '.'))"
    async with docker_executor(engine_socket, tmp_path) as executor:
        large = limits(log_bytes=16 << 20)
        handle = await executor.start(launch("burst", ["python", "-c", code], limits=large))
        found = await read_logs(executor, handle)

    assert text_of(found, "stdout") == "".join(f"{n:08d}".ljust(999, ".") + "\n" for n in range(12000))
    assert [chunk.offset for chunk in found] == list(
        itertools.accumulate((len(chunk.data) for chunk in found[:-1]), initial=0)
    )


@pytest.mark.engine
@pytest.mark.root
async def test_following_a_silent_job_can_be_given_up(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("silent", ["sleep", "600"]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(executor.logs(handle))

        assert await executor.reattach(handle)
