"""gVisor as the engine's runtime: its own kernel answers the job, and what it cannot keep is said."""

from __future__ import annotations

import platform
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.engine import docker_executor
from tests.support.executors import LIMITS, python
from tests.support.job_logs import read_logs, read_until
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.port import ExitReason, LaunchSpec
from torg_node.executors.probes import EGRESS_PROBE, KERNEL_PROBES, check_walls, with_egress

pytestmark = [
    pytest.mark.engine,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian: runsc)"),
]


@pytest.fixture
async def executor(engine_socket: Path, tmp_path: Path) -> AsyncIterator[DockerExecutor]:
    async with docker_executor(engine_socket, tmp_path / "docker", runtime="runsc") as executor:
        yield executor


def launch(*command: str) -> LaunchSpec:
    return LaunchSpec(
        name="job",
        image="host-python",
        command=command,
        env={},
        workdir="/tmp",
        mounts=(),
        limits=LIMITS,
        max_duration_ms=60_000,
    )


async def test_the_walls_hold_and_what_does_not_is_said(executor: DockerExecutor) -> None:
    found = await executor.probe()

    check_walls(found)
    assert found.isolation == "gvisor"
    assert {"own-kernel", "no-network", "no-new-privileges", "memory-limit", "disk-limit"} <= set(found.verified)
    assert not KERNEL_PROBES & set(found.verified)  # nobody asked the host's kernel
    assert any(failure.startswith("deadline-without-agent: ") for failure in found.failed)


async def test_a_job_runs_on_another_kernel_and_stops_when_asked(executor: DockerExecutor) -> None:
    handle = await executor.start(
        launch(*python("import os, time; print(os.uname().release, flush=True); time.sleep(60)"))
    )
    assert (await read_until(executor, handle, "\n")).strip() != platform.release()
    await executor.stop(handle, 0)

    assert (await executor.wait(handle)).reason is ExitReason.STOPPED
    assert len(await read_logs(executor, handle)) >= 1


async def test_there_is_no_way_out_of_it_today(executor: DockerExecutor) -> None:
    found = await with_egress(executor, await executor.probe())

    assert EGRESS_PROBE not in found.verified
    assert any(failure.startswith("egress: ") and "cannot be entered" in failure for failure in found.failed)
    check_walls(found)
