"""Logs of bounded size whose offsets never lie."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from torg_host.disk import delete_tree
from torg_host.sandbox.container import Container, LogPiece
from torg_host.sandbox.output import LogWriter, Throttle
from torg_host.sandbox.watch import used_bytes

MIB = 1 << 20


def container_with_logs(tmp_path: Path) -> Container:
    (tmp_path / "logs").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    return Container(tmp_path)


def end(container: Container) -> None:
    (container.state_dir / "exit.json").write_text("{}")


async def read(container: Container, **offsets: int) -> list[LogPiece]:
    return [piece async for piece in container.follow_logs(**offsets)]


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_kept_is_the_newest_part_of_each_stream_at_its_true_offsets(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    container = container_with_logs(tmp_path)
    writer = LogWriter(str(tmp_path / "logs"), 100_000)
    written = {"stdout": b"", "stderr": b""}
    for _ in range(300):
        stream = chance.choice(["stdout", "stdout", "stderr"])
        data = os.urandom(chance.choice([1, 100, 5_000]))
        writer.write(stream, data)
        written[stream] += data
        assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) <= 100_000
    writer.close()
    end(container)

    pieces = await read(container)

    for stream, whole in written.items():
        own = [piece for piece in pieces if piece.stream == stream]
        for piece in own:
            assert whole[piece.offset : piece.offset + len(piece.data)] == piece.data
        assert own[-1].offset + len(own[-1].data) == len(whole)
        assert sum(len(piece.data) for piece in own) == len(whole) - own[0].offset  # no gap after the first piece
    assert sum(len(piece.data) for piece in pieces) > 60_000


async def test_reading_from_an_offset_inside_a_segment(tmp_path: Path) -> None:
    container = container_with_logs(tmp_path)
    writer = LogWriter(str(tmp_path / "logs"), 1 << 20)
    whole = bytes(range(256)) * 2000
    writer.write("stdout", whole)
    writer.close()
    end(container)

    for offset in (0, 1, 131_071, 131_072, 131_073, len(whole) - 1):
        pieces = await read(container, stdout_from=offset)
        assert pieces[0].offset == offset
        assert b"".join(piece.data for piece in pieces) == whole[offset:]
    assert await read(container, stdout_from=len(whole)) == []


async def test_a_container_that_is_gone_has_no_logs(tmp_path: Path) -> None:
    assert await read(Container(tmp_path / "never")) == []


@pytest.mark.parametrize(("size_bytes", "charged_bytes"), [(64 << 10, 64 << 10), (1, 16 << 10)])
def test_the_throttle_holds_the_average_rate(size_bytes: int, charged_bytes: int) -> None:
    now = 0.0
    throttle = Throttle(now, bytes_per_s=MIB)
    taken = 0
    while now < 10:
        throttle.took(size_bytes, now)
        taken += charged_bytes
        now += throttle.pause_s(now)

    assert 10 * MIB <= taken <= 11.2 * MIB  # ten seconds' worth and one second of saved-up allowance


def test_used_space_counts_blocks_and_not_what_links_point_at(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(b"x" * MIB)
    before = used_bytes(str(tmp_path))
    (tmp_path / "sparse").open("wb").truncate(1 << 40)
    (tmp_path / "link").symlink_to("/usr")

    assert MIB <= before < MIB + 64_000
    assert used_bytes(str(tmp_path)) - before < 64_000
    assert used_bytes(str(tmp_path / "gone")) == 0


@pytest.fixture
def nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """Makes directories in one another, deeper than a path can name; leaves the process inside the innermost."""

    def make(name: str, depth: int) -> Path:
        monkeypatch.chdir(tmp_path)
        for _ in range(depth):
            Path(name).mkdir()
            os.chdir(name)
        return tmp_path

    return make


def test_directories_too_deep_to_look_into_count_as_over_any_limit(nest: Callable[[str, int], Path]) -> None:
    root = nest("d" * 200, 40)
    Path("hidden").write_bytes(b"x" * MIB)
    try:
        assert used_bytes(str(root)) > 1 << 60
    finally:
        delete_tree(root)


def test_a_tree_deeper_than_pythons_stack_is_deleted(nest: Callable[[str, int], Path]) -> None:
    root = nest("d", 3000)

    delete_tree(root)

    assert not root.exists()
