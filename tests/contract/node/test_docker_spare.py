"""An alarm that waits for its job: it keeps the promise of one that was made for it, and leaves nothing when its agent goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.contract.node.test_docker_endings import SLOW_MS, until_ended
from tests.contract.node.test_docker_ownership import names_on
from tests.support.engine import docker_executor, engine_client, launch
from tests.support.waiting import eventually, until
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.docker_request import ALARM_ALLOWANCE_MS, alarm_name
from torg_node.executors.port import ExitReason, Handle

pytestmark = [pytest.mark.engine, pytest.mark.root]
SLEEP = ["sleep", "600"]
AGENT = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from tests.support.engine import launch
from tests.support.waiting import until
from torg_node.executors.docker import DockerExecutor

async def main():
    executor = await DockerExecutor.connect(Path(sys.argv[1]), "node-a", state_dir=Path(sys.argv[2]), keeps_spare=True)
    await executor.remove(await executor.start(launch("first", ["true"])))
    await until(lambda: executor._spare._waiting is not None)
    spare = executor._spare._waiting.ref
    handle = await executor.start(launch("orphan", ["sleep", "600"], max_duration_ms=6000))
    await until(lambda: executor._spare._waiting is not None)
    print(json.dumps([spare, dataclasses.asdict(handle)]), flush=True)
    await executor.wait(handle)

asyncio.run(main())
"""


async def spares_on(socket: Path) -> set[str]:
    return {name for name in await names_on(socket) if name.startswith("torg-spare-")}


async def waits_for_a_job(executor: DockerExecutor) -> str:
    assert executor._spare is not None
    await until(lambda: executor._spare is not None and executor._spare._waiting is not None)
    assert executor._spare._waiting is not None
    return executor._spare._waiting.ref


async def test_the_second_job_finds_its_alarm_running_and_the_third_another(
    engine_socket: Path, tmp_path: Path
) -> None:
    async with docker_executor(engine_socket, tmp_path, keeps_spare=True) as executor:
        await executor.start(launch("first", SLEEP))
        spare = await waits_for_a_job(executor)
        second = await executor.start(launch("second", SLEEP))
        async with engine_client(engine_socket) as client:
            alarm = await client.containers.container(alarm_name("second")).show()
            job = await client.containers.container(second.ref).show()
        assert alarm["Id"] == spare
        assert job["HostConfig"]["PidMode"] == f"container:{spare}"
        assert await waits_for_a_job(executor) != spare
        assert await executor.reap(frozenset({"second"})) == ("first",)
        assert await names_on(engine_socket) == {"second", alarm_name("second"), *(await spares_on(engine_socket))}
        assert len(await spares_on(engine_socket)) == 1

        await executor.remove(second)
        assert await names_on(engine_socket) == await spares_on(engine_socket)
    assert await names_on(engine_socket) == set()


async def test_one_that_is_gone_is_replaced_by_one_that_is_made(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path, keeps_spare=True) as executor:
        await executor.start(launch("first", SLEEP))
        spare = await waits_for_a_job(executor)
        async with engine_client(engine_socket) as client:
            await client.containers.container(spare).kill()
            await client.containers.container(spare).wait()
            await executor.start(launch("second", SLEEP))
            assert (await client.containers.container(alarm_name("second")).show())["Id"] != spare


async def test_many_at_once_each_have_an_alarm_of_their_own(engine_socket: Path, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    async with docker_executor(engine_socket, tmp_path, keeps_spare=True) as executor:
        await executor.remove(await executor.start(launch("first", ["true"])))
        await waits_for_a_job(executor)
        handles = await asyncio.gather(*(executor.start(launch(name, SLEEP)) for name in names))
        async with engine_client(engine_socket) as client:
            shown = [await client.containers.container(handle.ref).show() for handle in handles]

    assert len({container["HostConfig"]["PidMode"] for container in shown}) == 3


@pytest.mark.slow
async def test_the_deadline_holds_while_no_agent_lives_and_its_spare_ends_with_it(
    engine_socket: Path, tmp_path: Path
) -> None:
    spare, handle = await start_and_kill_an_agent(engine_socket, tmp_path)
    async with engine_client(engine_socket) as client:
        assert (await client.containers.container(alarm_name("orphan")).show())["Id"] == spare

        async def ended() -> bool:
            (left,) = await spares_on(engine_socket)
            return not (await client.containers.container(left).show())["State"]["Running"]

        await eventually(ended)
    await until_ended(engine_socket, handle.ref)
    async with docker_executor(engine_socket, tmp_path) as executor:
        assert await executor.reap(frozenset({"orphan"})) == ()
        assert await spares_on(engine_socket) == set()
        ended_so = await executor.wait(handle)

    assert (ended_so.reason, ended_so.code) == (ExitReason.MAX_DURATION, 137)
    assert 6000 <= ended_so.finished_at_ms - ended_so.started_at_ms <= 6000 + ALARM_ALLOWANCE_MS + SLOW_MS


async def start_and_kill_an_agent(socket: Path, state_dir: Path) -> tuple[str, Handle]:
    """Its spare alarm, which the job has got, and the job; it is killed as soon as the next spare waits."""
    root = Path(__file__).resolve().parents[3]
    command: Sequence[str] = (sys.executable, "-c", AGENT, str(socket), str(state_dir))
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    )
    assert process.stdout is not None
    spare, handle = json.loads(await asyncio.wait_for(process.stdout.readline(), timeout=180))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    return spare, Handle(**handle)
