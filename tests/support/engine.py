"""A real container engine for tests: private, started once per test session and only when asked for, gone without a trace."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import aiodocker
import pytest

from tests.support.job_logs import read_logs, text_of
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.docker_archive import File, ImageArchive, ImageConfig, image_archive
from torg_node.executors.port import Exit, LaunchSpec, Mount, ResourceLimits

DOCKER_FOLDER = Path(__file__).resolve().parents[2] / "docker"
ENGINE_SCRIPT = DOCKER_FOLDER / "engine.py"
MIB = 1 << 20
running: Path | None = None  # this session's engine, by its state folder


def load_script(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


_base_image = load_script(DOCKER_FOLDER / "base_image.py")


@pytest.fixture(scope="session")
def engine_socket() -> Iterator[Path]:
    """The socket of a running engine. Skips, with the reason, where none can be started."""
    if os.geteuid() != 0:
        pytest.skip("a private container engine needs root")
    if shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("dockerd is not installed (Debian: docker.io)")
    global running  # noqa: PLW0603  for whoever looks for leaks: a fixture cannot ask whether another one was used
    folder = Path(tempfile.mkdtemp(prefix="torg-engine-"))
    try:
        socket = Path(run_engine_script("start", folder / "engine"))
        running = folder / "engine"
        yield socket
    finally:
        running = None
        run_engine_script("stop", folder / "engine")
        folder.rmdir()


def run_engine_script(action: str, state_dir: Path) -> str:
    command = [sys.executable, str(ENGINE_SCRIPT), action, "--state-dir", str(state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@asynccontextmanager
async def docker_executor(
    socket: Path, state_dir: Path, node: str = "node-a", **options: object
) -> AsyncIterator[DockerExecutor]:
    """Connected for the test; at its end all of the node's containers are removed, unless the test closed it before."""
    executor = await DockerExecutor.connect(socket, node, state_dir=state_dir, **options)  # type: ignore[arg-type]  # passed through
    try:
        yield executor
    finally:
        if not executor.is_closed:
            await executor.reap(frozenset())
            await executor.close()


@asynccontextmanager
async def engine_client(socket: Path) -> AsyncIterator[aiodocker.Docker]:
    """The engine seen from outside our executor."""
    client = aiodocker.Docker(url=f"unix://{socket}")
    try:
        yield client
    finally:
        await client.close()


async def load_image(socket: Path, image: ImageArchive) -> ImageArchive:
    async with engine_client(socket) as client:
        await client.images.import_image(io.BytesIO(image.data))
    return image


@dataclass(frozen=True)
class Outcome:
    exit: Exit
    stdout: str
    stderr: str


def launch(name: str, command: Sequence[str], **changes: object) -> LaunchSpec:
    """A small job in host-python; `changes` override fields of the spec."""
    fields: dict[str, object] = {
        "image": "host-python",
        "env": {},
        "workdir": "/tmp",
        "mounts": (),
        "limits": limits(),
        "max_duration_ms": 600_000,
    }
    return LaunchSpec(name=name, command=tuple(command), **{**fields, **changes})  # type: ignore[arg-type]  # checked by tests


def limits(**changes: int) -> ResourceLimits:
    return ResourceLimits(**{"memory_bytes": 256 * MIB, "cpu_millis": 1000, "disk_bytes": 64 * MIB, **changes})


async def run_to_end(executor: DockerExecutor, spec: LaunchSpec) -> Outcome:
    handle = await executor.start(spec)
    chunks = await read_logs(executor, handle)
    outcome = Outcome(await executor.wait(handle), text_of(chunks, "stdout"), text_of(chunks, "stderr"))
    await executor.remove(handle)
    return outcome


def job_folder(path: Path) -> Mount:
    """A writable folder as the agent prepares it: owned by the job's user."""
    path.mkdir()
    os.chown(path, 65534, 65534)
    return Mount(source=path, target="/workspace", writable=True)


def small_image(
    tag: str = "torg-test/busybox:1",
    *,
    volumes: tuple[str, ...] = (),
    labels: Mapping[str, str] | None = None,
    files: Sequence[File] = (),
    **config: Any,
) -> ImageArchive:
    """Static busybox and nothing else: 2 MB, made without a registry. `config`: further fields of its configuration."""
    if not _base_image.BUSYBOX.exists():
        pytest.skip("busybox is not installed (Debian: busybox-static)")
    made = ImageConfig(architecture="amd64", env=("PATH=/bin",), volumes=volumes, labels=labels or {}, **config)
    image: ImageArchive = image_archive(tag, [*_base_image.busybox_entries(), *files], made)
    return image
