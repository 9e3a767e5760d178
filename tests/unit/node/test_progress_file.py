"""What is told of a job's progress file, which the job may make of anything."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from torg_node.lease import Lease
from torg_node.steps.streams import follow_progress
from torg_protocol.messages import Progress


@pytest.fixture
def progress(tmp_path: Path) -> Path:
    (tmp_path / "torg").mkdir()
    return tmp_path / "torg" / "progress.jsonl"


async def told(progress: Path) -> list[Any]:
    """Of a job that has ended."""
    found: list[Any] = []

    async def send(message: Progress) -> bool:
        found.append(message.data)
        return True

    lease = SimpleNamespace(
        id="lease_x",
        spec=SimpleNamespace(sealed=None),
        grant=SimpleNamespace(fence=1),
        files=progress.parents[1],
        node=SimpleNamespace(send=send, now_ms=lambda: 1),
    )
    ended = asyncio.Event()
    ended.set()
    await follow_progress(cast("Lease", lease), ended)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"step": 1}\n{"step": 2}\n', [{"step": 2}]),
        ('{"step": 1}\nnot JSON\n[3]\n', [{"step": 1}]),
        ('{"step": 1}\n{"step": 2}', [{"step": 1}]),
        ('{"step": 1}', []),
        ("", []),
    ],
)
async def test_the_newest_whole_line_that_is_an_object_is_told(progress: Path, text: str, expected: list[Any]) -> None:
    progress.write_text(text)
    assert await told(progress) == expected


async def test_a_line_without_end_takes_no_memory_and_hides_nothing_for_long(progress: Path) -> None:
    endless = 4 << 20
    progress.write_bytes(b'{"step": 1}\n' + b"x" * endless)
    assert await told(progress) == []
    with progress.open("ab") as file:
        file.write(b'{"step": 2}\n')  # the end of the long line
    assert await told(progress) == []
    with progress.open("ab") as file:
        file.write(b'{"step": 3}\n')
    assert await told(progress) == [{"step": 3}]


async def test_a_pipe_holds_nothing_up(progress: Path) -> None:
    """Opened as a file it would be waited for until somebody writes: the lease would never end."""
    os.mkfifo(progress)
    assert await told(progress) == []


async def test_a_link_is_not_followed(progress: Path, tmp_path: Path) -> None:
    (tmp_path / "of the host").write_text('{"step": 1}\n')
    progress.symlink_to(tmp_path / "of the host")
    assert await told(progress) == []
