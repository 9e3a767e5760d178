"""What `probe` declares, on an engine without GPUs; and which engines are refused."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.engine import docker_executor, engine_client, launch, load_image, run_to_end, small_image
from tests.support.job_logs import read_until
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.docker_archive import File
from torg_node.executors.docker_gpu import verify_device_nodes, verify_gpus
from torg_node.executors.errors import ExecutorError, ExecutorUnavailable
from torg_node.executors.probes import INSPECTED

GPU = "GPU-8a5f6b6e-0000-0000-0000-000000000001"
NO_DRIVER = 'could not select device driver "nvidia" with capabilities: [[gpu compute utility]]'


@pytest.mark.engine
@pytest.mark.root
async def test_every_probe_passes_and_gpus_are_not_claimed_where_none_work(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path, gpu_uuids=[GPU]) as executor:
        found = await executor.probe()

    assert set(found.verified) == {*INSPECTED, "pids-limit", "memory-limit", "disk-limit"}
    assert found.failed == (f"gpu: starting the container: {NO_DRIVER}",)
    assert (found.executor, found.isolation, found.gpu) == ("docker", "container", False)
    assert found.version


@pytest.mark.engine
@pytest.mark.root
async def test_a_gpu_that_the_engine_cannot_give_is_its_own_clear_error_and_leaves_nothing(
    engine_socket: Path, tmp_path: Path
) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor, engine_client(engine_socket) as client:
        with pytest.raises(ExecutorError) as caught:
            await executor.start(launch("gpu", ["true"], gpu_uuids=(GPU,)))

        assert NO_DRIVER in caught.value.message
        assert await client.containers.list(all=True) == []


SIMULATED = "#!/bin/sh\necho 'GPU 0: SIMULATED GPU (UUID: GPU-1)'\necho 'GPU 1: SIMULATED GPU (UUID: GPU-2)'\n"


@pytest.mark.engine
@pytest.mark.root
@pytest.mark.parametrize(
    ("promised", "complaint"),
    [
        (["GPU-2", "GPU-1"], None),
        (["GPU-1"], "promised ['GPU-1'], sees ['GPU-1', 'GPU-2']"),
        (["GPU-1", "GPU-2", "GPU-3"], "promised ['GPU-1', 'GPU-2', 'GPU-3'], sees ['GPU-1', 'GPU-2']"),
    ],
)
async def test_a_container_must_see_exactly_the_gpus_it_was_promised(
    engine_socket: Path, tmp_path: Path, promised: list[str], complaint: str | None
) -> None:
    image = await load_image(
        engine_socket, small_image("torg-test/smi:1", files=(File("bin/nvidia-smi", SIMULATED.encode(), 0o755),))
    )
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag]) as executor:
        prepared = await executor.prepare(image.tag)
        handle = await executor.start(launch("gpus", ["sleep", "600"], image=prepared.reference))
        if complaint is None:
            await verify_gpus(executor._engine.docker, handle.ref, promised)
            return
        with pytest.raises(ExecutorError) as caught:
            await verify_gpus(executor._engine.docker, handle.ref, promised)

    assert caught.value.code == "gpu_mismatch"
    assert caught.value.message.endswith(complaint)


@pytest.mark.engine
@pytest.mark.root
async def test_what_cannot_be_looked_at_is_not_verified(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        without_tool = await executor.start(launch("without", ["sleep", "600"]))
        ended = await executor.start(launch("ended", ["true"]))
        await executor.wait(ended)

        with pytest.raises(ExecutorError) as no_tool:
            await verify_gpus(executor._engine.docker, without_tool.ref, [GPU])
        with pytest.raises(ExecutorError, match="is not running"):
            await verify_gpus(executor._engine.docker, ended.ref, [GPU])

    assert no_tool.value.code == "gpu_mismatch"
    assert "nvidia-smi" in str(no_tool.value.hint)


async def test_no_engine_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ExecutorUnavailable, match=str(tmp_path / "none.sock")) as caught:
        await DockerExecutor.connect(tmp_path / "none.sock", "node-a", state_dir=tmp_path)

    assert caught.value.code == "executor_unavailable"
    assert caught.value.hint is not None


async def test_without_a_socket_anywhere_the_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("torg_node.executors.docker_engine._USUAL_SOCKETS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ExecutorUnavailable, match=f"nor any of {tmp_path}/a, {tmp_path}/b is a Unix socket"):
        await DockerExecutor.connect(None, "node-a", state_dir=tmp_path)


GOOD_INFO = {
    "OSType": "linux",
    "NCPU": 2,
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}
GOOD_VERSION = {"Version": "27.0.0", "ApiVersion": "1.46", "Arch": "amd64", "Components": [{"Name": "Engine"}]}


@asynccontextmanager
async def engine_that_says(socket: Path, version: dict[str, object], info: dict[str, object]) -> AsyncIterator[None]:
    """Answers the two questions of connecting as some real engine does; nothing else."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(version if request.path.endswith("/version") else info)

    application = web.Application()
    application.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("version", "info", "reason"),
    [
        (
            {"Components": [{"Name": "Podman Engine"}]},
            {},
            "is podman, whose Docker-compatible API silently ignores GPU",
        ),
        ({}, {"SecurityOptions": ["name=seccomp", "name=rootless"]}, "maps user ids"),
        ({}, {"SecurityOptions": ["name=seccomp", "name=userns"]}, "maps user ids"),
        ({}, {"SecurityOptions": []}, "was built without seccomp"),
        ({}, {"PidsLimit": False}, "cannot limit memory, processes and CPU"),
        ({}, {"OSType": "windows"}, "runs windows containers"),
    ],
)
async def test_an_engine_that_cannot_keep_the_promises_is_refused(
    tmp_path: Path, version: dict[str, object], info: dict[str, object], reason: str
) -> None:
    socket = tmp_path / "e.sock"
    async with engine_that_says(socket, {**GOOD_VERSION, **version}, {**GOOD_INFO, **info}):
        with pytest.raises(ExecutorUnavailable, match=reason):
            await DockerExecutor.connect(socket, "node-a", state_dir=tmp_path / "state")


async def test_a_runtime_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    async with engine_that_says(socket, GOOD_VERSION, {**GOOD_INFO, "Runtimes": {"runc": {}}}):
        with pytest.raises(ExecutorUnavailable, match='has no runtime "runsc"; it has runc'):
            await DockerExecutor.connect(socket, "node-a", state_dir=tmp_path / "state", runtime="runsc")


async def test_an_engine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torg_node.executors.docker_engine._FIRST_ANSWER_TIMEOUT_S", 0.3)
    server = await asyncio.start_unix_server(lambda _reader, _writer: asyncio.sleep(30), str(tmp_path / "e.sock"))
    try:
        with pytest.raises(ExecutorUnavailable, match="no answer in time"):
            await DockerExecutor.connect(tmp_path / "e.sock", "node-a", state_dir=tmp_path)
    finally:
        server.close()


RENDER_GROUP = 48_123


@pytest.fixture
def simulated_gpu() -> Iterator[str]:
    """A device node that stands in for an AMD GPU's: what is written to it goes where /dev/null's goes. Open to its group, as those are."""
    path = Path(f"/dev/torg-simulated-gpu-{os.getpid()}")
    os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(1, 3))
    os.chown(path, 0, RENDER_GROUP)
    path.chmod(0o660)
    yield str(path)
    path.unlink()


@pytest.mark.engine
@pytest.mark.root
async def test_a_gpu_without_a_runtime_of_its_own_comes_as_its_device_nodes_and_their_group(
    engine_socket: Path, tmp_path: Path, simulated_gpu: str
) -> None:
    image = await load_image(engine_socket, small_image("torg-test/amd:1"))
    devices = {"AMD-1": (simulated_gpu,), "AMD-2": ("/dev/kfd-that-is-not-there",)}
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag], gpu_devices=devices) as executor:
        reference = (await executor.prepare(image.tag)).reference
        use = f"id -G; echo used > {simulated_gpu} && echo written && sleep 600"
        handle = await executor.start(launch("amd", ["sh", "-c", use], image=reference, gpu_uuids=("AMD-1",)))
        said = await read_until(executor, handle, "written\n")
        with pytest.raises(ExecutorError) as unseen:
            await verify_device_nodes(executor._engine.docker, handle.ref, [simulated_gpu, "/dev/dri/renderD128"])
        with pytest.raises(ExecutorError, match="no such file"):
            await executor.start(launch("none", ["true"], image=reference, gpu_uuids=("AMD-2",)))
        await executor.stop(handle, 0)
        plain = await run_to_end(executor, launch("plain", ["ls", simulated_gpu], image=reference))

    assert said.split() == ["65534", str(RENDER_GROUP), "written"]
    assert unseen.value.code == "gpu_mismatch"
    assert unseen.value.message.endswith(f"sees {[simulated_gpu]}")
    assert plain.exit.code != 0, "a job without a GPU does not see it"
