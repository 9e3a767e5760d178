"""The connection to a Docker-compatible engine: found, asked what it is, and refused where it cannot keep our promises."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiodocker
import aiohttp

from torg_node.executors.errors import ExecutorError, ExecutorUnavailable

_CONNECT_TIMEOUT_S = 20.0
_FIRST_ANSWER_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S = 120.0
_USUAL_SOCKETS = (Path("/run/docker.sock"), Path("/var/run/docker.sock"))
_UNREACHABLE = 900  # aiodocker's own status for "no connection"

GpuDriver = Literal["nvidia", "cdi"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A connected engine and the facts about it that decide how containers are asked for."""

    docker: aiodocker.Docker
    socket_path: Path
    version: str
    architecture: str
    cpus: int
    runtimes: frozenset[str]
    gpu_driver: GpuDriver


async def connect_engine(socket_path: Path | None) -> Engine:
    """Raises ExecutorUnavailable when nothing answers, or when what answers cannot isolate strangers' jobs as promised."""
    path = socket_path or _usual_socket()
    docker = aiodocker.Docker(
        url=f"unix://{path}",
        timeout=aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
    )
    try:
        with engine_errors(f"container engine at {path}"):
            async with asyncio.timeout(_FIRST_ANSWER_TIMEOUT_S):
                version, info = await docker.version(), await docker.system.info()
        _refuse_unfit(path, version, info)
    except BaseException:
        await docker.close()
        raise
    return Engine(
        docker=docker,
        socket_path=path,
        version=str(version["Version"]),
        architecture=str(version["Arch"]),
        cpus=int(info["NCPU"]),
        runtimes=frozenset(info.get("Runtimes") or {}),
        gpu_driver="cdi" if "nvidia" not in (info.get("Runtimes") or {}) and info.get("CDISpecDirs") else "nvidia",
    )


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the client library's errors into ours, with the engine's own words."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == _UNREACHABLE:
            raise _unavailable(f"{what}: {error.message}") from error
        raise ExecutorError(f"{what}: {error.message}", engine_status=error.status) from error
    except TimeoutError as error:  # an OSError too, but one without words
        raise _unavailable(f"{what}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _unavailable(f"{what}: {error}") from error


def _unavailable(message: str) -> ExecutorUnavailable:
    return ExecutorUnavailable(
        message,
        hint="start the engine, name its socket (engine_socket in config.toml, --engine-socket of init), or use the embedded sandbox executor",
    )


def _usual_socket() -> Path:
    """DOCKER_HOST when it names a Unix socket, else the first usual path that is one."""
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        return Path(host.removeprefix("unix://"))
    for path in _USUAL_SOCKETS:
        if path.is_socket():
            return path
    looked = ", ".join(str(path) for path in _USUAL_SOCKETS)
    raise _unavailable(f"no container engine: neither DOCKER_HOST nor any of {looked} is a Unix socket")


def _refuse_unfit(path: Path, version: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """An engine that ignores what it is asked for is worse than none: each refusal names what would not hold."""
    components = {str(part.get("Name")) for part in version.get("Components") or []}
    options = " ".join(info.get("SecurityOptions") or [])
    reason = None
    if "Podman Engine" in components:
        reason = (
            "is podman, whose Docker-compatible API silently ignores GPU requests, takes seccomp profiles only as server paths"
            " and does not report out-of-memory kills"
        )
    elif info.get("OSType", "linux") != "linux":
        reason = f"runs {info['OSType']} containers; jobs need Linux"
    elif "name=userns" in options or "name=rootless" in options:
        reason = "maps user ids (userns-remap or rootless), so jobs could not write to their workspace"
    elif "seccomp" not in options:
        reason = "was built without seccomp"
    elif not (
        info.get("MemoryLimit") and info.get("PidsLimit") and (info.get("CpuCfsQuota") or info.get("CPUCfsQuota"))
    ):
        reason = "cannot limit memory, processes and CPU (see the warnings of `docker info`)"
    if reason:
        raise ExecutorUnavailable(
            f"the container engine at {path} {reason}",
            hint="use Docker Engine with its default user mapping, or the embedded sandbox executor",
        )
