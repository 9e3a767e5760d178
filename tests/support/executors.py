"""The executors that the contract suite runs against, each as it is really used, and a look-out for what they leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.engine import docker_executor
from tests.support.job_logs import read_logs, text_of
from tests.support.leaks import is_kept_spare
from tests.support.searching import control_groups
from torg_host.sandbox.launch import cgroup_name
from torg_node.executors.port import Executor, Exit, Handle, LaunchSpec, LogChunk, Mount, ResourceLimits
from torg_node.executors.process import ProcessExecutor
from torg_node.executors.sandbox import SandboxExecutor

MIB = 1 << 20
TOKEN = "TORG_TEST_TOKEN"  # in the environment of every job that a test starts
LIMITS = ResourceLimits(
    memory_bytes=128 * MIB, cpu_millis=1000, disk_bytes=32 * MIB, shm_bytes=16 * MIB, pids=64, log_bytes=MIB
)


@dataclass(frozen=True)
class ExecutorKind:
    """`connect(request, root)` opens the executor whose state is below `root`; opened twice it finds the same containers.
    `source(request, root)` is Python that makes `executor` inside a coroutine, for a process of its own."""

    name: str
    connect: Callable[[pytest.FixtureRequest, Path], AbstractAsyncContextManager[Executor]]
    source: Callable[[pytest.FixtureRequest, Path], str]
    isolates: bool = True  # False: only the suite's manners are tested, not its limits
    marks: tuple[pytest.MarkDecorator, ...] = ()


KINDS: list[ExecutorKind] = []


def every_kind() -> list[object]:
    return [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS]


def isolating_kinds() -> list[object]:
    return [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS if kind.isolates]


# --- kinds -----------------------------------------------------------------------------------------------------------


def _need_sandbox() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (Debian: bubblewrap)")


@asynccontextmanager
async def _sandbox(_request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Executor]:
    _need_sandbox()
    executor = SandboxExecutor(root / "sandbox", keeps_spare=True)
    try:
        yield executor
    finally:
        await executor.close()


@asynccontextmanager
async def _process(_request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Executor]:
    yield ProcessExecutor(root / "process", allow_own_jobs_only=True)


def _sandbox_source(_request: pytest.FixtureRequest, root: Path) -> str:
    return (
        "from torg_node.executors.sandbox import SandboxExecutor\n"
        f"    executor = SandboxExecutor(Path({str(root / 'sandbox')!r}))"
    )


def _no_source(_request: pytest.FixtureRequest, _root: Path) -> str:
    raise AssertionError("a job of the process executor ends with its agent")


KINDS.append(ExecutorKind("sandbox", _sandbox, _sandbox_source, marks=(pytest.mark.sandbox,)))


@asynccontextmanager
async def _docker(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Executor]:
    async with docker_executor(request.getfixturevalue("engine_socket"), root / "docker") as executor:
        yield executor


def _docker_source(request: pytest.FixtureRequest, root: Path) -> str:
    socket = request.getfixturevalue("engine_socket")
    return (
        "from torg_node.executors.docker import DockerExecutor\n"
        f"    executor = await DockerExecutor.connect(Path({str(socket)!r}), 'node-a', state_dir=Path({str(root / 'docker')!r}))"
    )


KINDS.append(ExecutorKind("docker", _docker, _docker_source, marks=(pytest.mark.engine, pytest.mark.root)))
KINDS.append(ExecutorKind("process", _process, _no_source, isolates=False))


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One test's executor, state directory and token."""

    kind: ExecutorKind
    executor: Executor
    root: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    handles: list[Handle] = field(default_factory=list)

    def spec(self, *command: str, name: str = "job", mounts: Sequence[Mount] = (), **changes: object) -> LaunchSpec:
        fields: dict[str, object] = {
            "image": "host-python",
            "env": {TOKEN: self.token, "PYTHONUNBUFFERED": "1"},
            "workdir": "/tmp",
            "limits": LIMITS,
            "max_duration_ms": 300_000,
            **changes,
        }
        return LaunchSpec(name=name, command=command, mounts=tuple(mounts), **fields)  # type: ignore[arg-type]  # the test's

    async def start(self, *command: str, **changes: object) -> Handle:
        handle = await self.executor.start(self.spec(*command, **changes))  # type: ignore[arg-type]  # the test's
        self.handles.append(handle)
        return handle

    async def run(self, *command: str, **changes: object) -> Ended:
        return await self.ended(await self.start(*command, **changes))

    async def ended(self, handle: Handle) -> Ended:
        async with asyncio.timeout(180):
            ended = await self.executor.wait(handle)
            return Ended(handle, ended, await read_logs(self.executor, handle))

    async def let_go(self, program: str) -> Ended:
        """Runs a program that begins with WAITS, and lets it go on once it is known to run."""
        folder = self.folder()
        handle = await self.start(*python(program), mounts=[folder])
        (folder.source / "go").touch()
        return await self.ended(handle)

    def folder(self, name: str = "workspace") -> Mount:
        """A writable folder, as the agent prepares it."""
        path = self.root.resolve() / name
        path.mkdir()
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        return Mount(path, "/workspace", writable=True)


@dataclass(frozen=True)
class Ended:
    handle: Handle
    exit: Exit
    chunks: list[LogChunk]

    def text(self, stream: str = "stdout") -> str:
        return text_of(self.chunks, stream)


def python(program: str) -> tuple[str, str, str]:
    return ("python", "-c", program)


# What a container engine does not know of a job that ends before it has noted its start, such jobs wait with: see `Bench.let_go`.
WAITS = "import os, time\nwhile not os.path.exists('/workspace/go'): time.sleep(0.01)\n"


# --- leaks -----------------------------------------------------------------------------------------------------------


def left_behind(root: Path, token: str) -> list[str]:
    """What of a test is still on the host: processes, control groups, mounts, loop devices."""
    return [*_processes(token, str(root)), *_cgroups(str(root)), *_mounts(str(root)), *_loop_devices(str(root))]


def _processes(token: str, root: str) -> list[str]:
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            environment = (directory / "environ").read_bytes()
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if (token.encode() in environment or root.encode() in command) and not is_kept_spare(directory):
            found.append(f"process {directory.name}: {command.decode(errors='replace')[:200]}")
    return found


def _cgroups(root: str) -> list[str]:
    owned = cgroup_name(Path(root).resolve() / "sandbox" / "any").removesuffix("any")
    return [f"cgroup {path}" for path in control_groups(owned)]


def _mounts(root: str) -> list[str]:
    return [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if root in line]


def _loop_devices(root: str) -> list[str]:
    if shutil.which("losetup") is None:
        return []
    listing = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=False).stdout
    return [f"loop device {line}" for line in listing.splitlines() if root in line]


AGENT = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from torg_node.executors.port import LaunchSpec, ResourceLimits
async def main():
    {source}
    handle = await executor.start(LaunchSpec(
        name={name!r}, image="host-python", command=tuple({command!r}), env={env!r}, workdir="/tmp", mounts=(),
        limits=ResourceLimits(memory_bytes=1 << 27, cpu_millis=1000, disk_bytes=1 << 25), max_duration_ms=300000))
    print(json.dumps(asdict(handle)), flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def start_agent(source: str, name: str, command: Sequence[str], token: str) -> subprocess.Popen[bytes]:
    """Another process that starts a job and then waits to be killed; prints the handle as JSON."""
    program = AGENT.format(source=source, name=name, command=list(command), env={TOKEN: token})
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
