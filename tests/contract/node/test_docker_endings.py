"""How containers end: the deadline with and without an agent, stops, memory, disk, and what the reasons are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.engine import docker_executor, engine_client, job_folder, launch, limits, run_to_end
from tests.support.job_logs import read_logs, read_until, text_of
from tests.support.searching import matching
from tests.support.waiting import eventually, until
from torg_node.executors.docker_request import ALARM_ALLOWANCE_MS
from torg_node.executors.port import ExitReason, Handle

pytestmark = [pytest.mark.engine, pytest.mark.root]

IGNORES_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
OBEYS_TERM = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(600)"

MAX_MS = 6000  # an agent on a slow machine is back by then
SLOW_MS = 10_000  # that an engine may take to notice an end

AGENT = r"""
import asyncio, dataclasses, json, sys
from pathlib import Path
from tests.support.engine import launch
from tests.support.job_logs import read_until
from torg_node.executors.docker import DockerExecutor

async def main():
    executor = await DockerExecutor.connect(Path(sys.argv[1]), "node-a", state_dir=Path(sys.argv[2]))
    spec = launch("orphan", ["python", "-c", sys.argv[3]], max_duration_ms=int(sys.argv[4]))
    handle = await executor.start(spec)
    await read_until(executor, handle, "up\n")
    print(json.dumps(dataclasses.asdict(handle)), flush=True)
    await executor.wait(handle)

asyncio.run(main())
"""


async def start_and_kill_an_agent(socket: Path, state_dir: Path, code: str) -> Handle:
    """The agent of a container that lives on: killed without warning as soon as the job has said that it is up."""
    root = Path(__file__).resolve().parents[3]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, str(socket), str(state_dir), code, str(MAX_MS)),
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), timeout=120)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    return Handle(**json.loads(line))


async def until_ended(socket: Path, ref: str) -> None:
    """By the engine's own word: nobody else looks at the container."""
    async with engine_client(socket) as client:

        async def has_ended() -> bool:
            return not (await client.containers.container(ref).show())["State"]["Running"]

        await eventually(has_ended, within_s=120)


@pytest.mark.slow
async def test_the_deadline_holds_while_no_agent_lives(engine_socket: Path, tmp_path: Path) -> None:
    handle = await start_and_kill_an_agent(engine_socket, tmp_path, IGNORES_TERM)
    await until_ended(engine_socket, handle.ref)
    async with docker_executor(engine_socket, tmp_path) as executor:
        assert await executor.reattach(handle)
        ended = await executor.wait(handle)

    assert (ended.reason, ended.code) == (ExitReason.MAX_DURATION, 137)
    assert MAX_MS <= ended.finished_at_ms - ended.started_at_ms <= MAX_MS + ALARM_ALLOWANCE_MS + SLOW_MS


async def test_an_agent_that_comes_back_keeps_the_deadline_to_the_moment(engine_socket: Path, tmp_path: Path) -> None:
    handle = await start_and_kill_an_agent(engine_socket, tmp_path, OBEYS_TERM)
    async with docker_executor(engine_socket, tmp_path) as executor:
        assert await executor.reattach(handle)
        ended = await executor.wait(handle)

    assert (ended.reason, ended.code) == (ExitReason.MAX_DURATION, 0)
    # By itself it ended at the polite signal: the engine's own alarm, which is later, kills.
    assert MAX_MS <= ended.finished_at_ms - ended.started_at_ms < MAX_MS + ALARM_ALLOWANCE_MS


async def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("stubborn", ["python", "-c", IGNORES_TERM]))
        await read_until(executor, handle, "up\n")
        began = time.monotonic()
        await executor.stop(handle, grace_ms=700)
        took_s = time.monotonic() - began
        ended = await executor.wait(handle)

    assert 0.7 <= took_s < 60
    assert (ended.reason, ended.code) == (ExitReason.STOPPED, 137)


async def test_the_reason_for_a_stop_survives_the_agent(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("stopped", ["python", "-c", OBEYS_TERM]))
        await read_until(executor, handle, "up\n")
        await executor.stop(handle, grace_ms=5000)
        async with docker_executor(engine_socket, tmp_path) as returned:
            ended = await returned.wait(handle)
            await returned.stop(handle, grace_ms=0)  # no-op: it ended

    assert (ended.reason, ended.code) == (ExitReason.STOPPED, 0)


async def test_memory_beyond_the_limit_is_oom_and_the_peak_is_told(engine_socket: Path, tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "work")
    hog = (
        "import os, time; x = bytearray(100 << 20); print('half', flush=True)\n"
        "while not os.path.exists('/workspace/go'): time.sleep(0.01)\n"
        "y = [bytearray(8 << 20) for _ in range(99)]"
    )
    async with docker_executor(engine_socket, tmp_path / "state") as executor:
        handle = await executor.start(launch("hog", ["python", "-c", hog], mounts=(folder,)))
        await read_until(executor, handle, "half\n")
        supervision = executor._supervised[handle.ref]
        await until(lambda: (supervision._memory.peak_bytes or 0) >= 100 << 20, within_s=60)  # it looks once a second
        (folder.source / "go").touch()
        ended = await executor.wait(handle)

    assert (ended.reason, ended.code) == (ExitReason.OOM, 137)
    assert ended.peak_memory_bytes is not None
    assert 100 << 20 <= ended.peak_memory_bytes <= 256 << 20


async def test_a_job_that_survives_the_loss_of_a_child_was_not_killed(engine_socket: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "pid = os.fork()\n"
        "if pid == 0: x = [bytearray(8 << 20) for _ in range(99)]\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    async with docker_executor(engine_socket, tmp_path) as executor:
        outcome = await run_to_end(executor, launch("parent", ["python", "-c", code]))

    assert outcome.stdout == "-9\n"
    assert (outcome.exit.reason, outcome.exit.code) == (ExitReason.EXITED, 0)


async def test_many_small_files_beyond_the_disk_limit_end_the_job(engine_socket: Path, tmp_path: Path) -> None:
    code = "n = 0\nwhile True:\n    open(f'/workspace/{n}', 'wb').write(bytes(1 << 20)); n += 1"
    folder = job_folder(tmp_path / "work")
    small = limits(disk_bytes=8 << 20)
    async with docker_executor(engine_socket, tmp_path / "state") as executor:
        outcome = await run_to_end(executor, launch("writer", ["python", "-c", code], mounts=(folder,), limits=small))

    assert outcome.exit.reason is ExitReason.DISK_FULL
    assert outcome.exit.detail.endswith("the limit is 8388608")


async def test_one_large_file_stops_at_the_disk_limit(engine_socket: Path, tmp_path: Path) -> None:
    code = "f = open('/workspace/large', 'wb')\nwhile True: f.write(bytes(1 << 16))"
    folder = job_folder(tmp_path / "work")
    small = limits(disk_bytes=80 << 20)
    async with docker_executor(engine_socket, tmp_path / "state") as executor:
        outcome = await run_to_end(executor, launch("large", ["python", "-c", code], mounts=(folder,), limits=small))

    assert (outcome.exit.reason, outcome.exit.code) == (ExitReason.DISK_FULL, 1)
    assert "File too large" in outcome.stderr
    assert (folder.source / "large").stat().st_size == 80 << 20


async def test_a_command_that_does_not_exist_ends_as_in_a_shell(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        outcome = await run_to_end(executor, launch("nothing", ["/no/such/program"]))

    assert (outcome.exit.reason, outcome.exit.code) == (ExitReason.EXITED, 127)
    assert "/no/such/program" in outcome.exit.detail
    assert outcome.exit.started_at_ms == outcome.exit.finished_at_ms


async def test_what_the_job_left_running_dies_with_it(engine_socket: Path, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen(['sleep', '47.11'], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "sys.exit(3)\n"
    )
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("daemon", ["python", "-c", code]))
        ended = await executor.wait(handle)
        # Killed, and gone as soon as each of them has had its turn.
        await until(lambda: not any(b"47.11" in _read(path) for path in matching(Path("/proc"), "[0-9]*/cmdline")))

    assert (ended.reason, ended.code) == (ExitReason.EXITED, 3)


async def test_a_container_killed_by_somebody_else_is_told_apart(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(launch("victim", ["sleep", "600"]))
        await executor._engine.docker.containers.container(handle.ref).kill(signal="SIGKILL")
        ended = await executor.wait(handle)

    assert (ended.reason, ended.code) == (ExitReason.KILLED, 137)


async def test_logs_of_an_ended_container_are_whole(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        handle = await executor.start(
            launch("talker", ["python", "-c", "print('out'); import sys; print('err', file=sys.stderr)"])
        )
        await executor.wait(handle)
        chunks = await read_logs(executor, handle)

    assert (text_of(chunks, "stdout"), text_of(chunks, "stderr")) == ("out\n", "err\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
