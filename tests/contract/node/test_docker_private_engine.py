"""The script that gives demos and tests an engine of their own: safe to repeat, and gone without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import ENGINE_SCRIPT, docker_executor, launch, run_engine_script
from tests.support.searching import matching


@pytest.fixture
def folder(engine_socket: Path) -> Iterator[Path]:
    """Short, for the socket's sake. Asking for the shared engine makes sure that there can be one at all."""
    with tempfile.TemporaryDirectory(prefix="torg-private-") as path:
        yield Path(path)


def traces_of(state_dir: Path) -> list[str]:
    commands = []
    for path in matching(Path("/proc"), "[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(state_dir) in command:
            commands.append(command)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state_dir) in line]
    return [*commands, *mounts, *([str(state_dir)] if state_dir.exists() else [])]


def cgroups_named(name: str) -> list[Path]:
    return matching(Path("/sys/fs/cgroup"), name, f"*/{name}")


@pytest.mark.engine
@pytest.mark.root
async def test_it_comes_and_goes_with_a_container_still_running(folder: Path, tmp_path: Path) -> None:
    state_dir = folder / "engine"
    socket = run_engine_script("start", state_dir)
    try:
        assert run_engine_script("start", state_dir) == socket
        async with docker_executor(Path(socket), tmp_path) as executor:
            await executor.start(launch("left-running", ["sleep", "600"]))
            await executor.close()
        cgroup = json.loads((state_dir / "daemon.json").read_text())["cgroup-parent"].lstrip("/")
        assert len(traces_of(state_dir)) > 2
        assert cgroups_named(cgroup) != []
    finally:
        run_engine_script("stop", state_dir)

    assert traces_of(state_dir) == []
    assert cgroups_named(cgroup) == []
    run_engine_script("stop", state_dir)  # no-op


@pytest.mark.engine
@pytest.mark.root
def test_a_folder_that_holds_something_else_is_left_alone(folder: Path) -> None:
    (folder / "thesis.txt").write_text("years of work")
    command = [sys.executable, str(ENGINE_SCRIPT), "start", "--state-dir", str(folder)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    run_engine_script("stop", folder)

    assert refused.returncode == 1
    assert "holds something else" in refused.stderr
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.engine
@pytest.mark.root
def test_a_path_that_no_socket_can_have_is_refused(folder: Path) -> None:
    command = [sys.executable, str(ENGINE_SCRIPT), "start", "--state-dir", str(folder / ("x" * 100))]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert refused.returncode == 1
    assert "too long for a socket's address" in refused.stderr
