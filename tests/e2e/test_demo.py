"""Ctrl-C is an input too: whenever it comes, the demo leaves nothing running, mounted or confined."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.searching import matching
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start a localnet", "node A: ", r"attempt 1 on node [AB]: running"])
async def test_ctrl_c_stops_everything_that_the_demo_started(tmp_path: Path, moment: str) -> None:
    home = tmp_path / "demo"
    argv = [sys.executable, "-m", "scripts.demo", "--headless", "--executor", "sandbox", "--home", str(home)]
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True
    )
    try:
        async with asyncio.timeout(600):
            seen = await _read_until(process, moment)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the demo and the commands that it waits for
            stdout = process.stdout or asyncio.StreamReader()
            seen += (await stdout.read()).decode()
            await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    assert "interrupted: everything that the demo started is stopped" in seen
    assert process.returncode == 1
    await until(lambda: left_behind(home) == [], within_s=60)


async def test_the_demo_empties_no_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    argv = [sys.executable, "-m", "scripts.demo", "--headless", "--home", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()

    assert process.returncode == 1
    assert f"{tmp_path} is not empty, and no demo made it" in stderr.decode()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def left_behind(home: Path) -> list[str]:
    """Processes that name the folder, and mounts below it."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(home) in line]
    for entry in matching(Path("/proc"), "[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:  # it has just ended
            continue
        if str(home).encode() in command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


async def _read_until(process: asyncio.subprocess.Process, moment: str) -> str:
    stdout = process.stdout or asyncio.StreamReader()
    seen = ""
    async for line in stdout:
        seen += line.decode()
        if re.search(moment, seen):
            return seen
    raise AssertionError(f"the demo ended before {moment!r}:\n{seen}")
