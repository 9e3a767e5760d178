"""Which executor this node uses. Never a silent step down: what was chosen, and why, is returned and ends up in the offer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from torg_host.sandbox import SandboxLimits, run_sandboxed
from torg_host.sandbox.command import Isolation
from torg_host.sandbox.errors import SandboxUnavailable
from torg_host.sandbox.launch import isolation_here
from torg_node.executors.errors import ExecutorUnavailable
from torg_node.executors.port import Executor
from torg_node.executors.sandbox import SandboxExecutor, wall_clock_ms
from torg_protocol.errors import TorgError

TRIAL_LIMITS = SandboxLimits(memory_bytes=64 << 20)
TRIAL_TIMEOUT_S = 60.0

ExecutorKind = Literal["auto", "docker", "sandbox"]


@dataclass(frozen=True, slots=True)
class Chosen:
    executor: Executor
    why: str  # one line for the owner


async def choose_executor(
    kind: ExecutorKind,
    state_root: Path,
    *,
    node_label: str,
    docker_socket: Path | None = None,
    docker_runtime: str | None = None,
    local_images: Collection[str] = (),
    gpu_uuids: Sequence[str] = (),
    gpu_devices: Mapping[str, Sequence[str]] | None = None,
    image_root: Path | None = None,
    now_ms: Callable[[], int] = wall_clock_ms,
) -> Chosen:
    """`auto`: docker when its engine answers, else the sandbox, else ExecutorUnavailable with both reasons.

    `state_root`: this node's own directory for executors. `node_label` marks this node's containers on a shared engine.
    `now_ms`: by which containers' times are told. `docker_runtime`, `local_images`, `gpu_uuids` and `gpu_devices` as in `DockerExecutor.connect`.
    """

    async def docker() -> Chosen:
        return await _docker(
            state_root, node_label, docker_socket, docker_runtime, local_images, gpu_uuids, gpu_devices or {}, now_ms
        )

    match kind:
        case "docker":
            return await docker()
        case "sandbox":
            return await _sandbox(state_root, image_root, "chosen by the owner", now_ms)
        case "auto":
            try:
                return await docker()
            except TorgError as no_docker:
                reason = no_docker.message
            try:
                return await _sandbox(state_root, image_root, f"no container engine ({reason})", now_ms)
            except ExecutorUnavailable as no_sandbox:
                raise ExecutorUnavailable(
                    f"nothing here can isolate a job: docker: {reason}; sandbox: {no_sandbox.message}",
                    hint="Install bubblewrap (apt-get install bubblewrap) or start a Docker engine.",
                ) from no_sandbox
        case _:
            assert_never(kind)


async def _docker(
    state_root: Path,
    node_label: str,
    socket: Path | None,
    runtime: str | None,
    local_images: Collection[str],
    gpu_uuids: Sequence[str],
    gpu_devices: Mapping[str, Sequence[str]],
    now_ms: Callable[[], int],
) -> Chosen:
    try:
        from torg_node.executors.docker import DockerExecutor
    except ImportError as error:
        raise ExecutorUnavailable(f"the docker executor needs {error.name}", hint="pip install 'torg[node]'") from error
    executor = await DockerExecutor.connect(
        socket,
        node_label,
        state_dir=state_root / "docker",
        runtime=runtime,
        local_images=local_images,
        gpu_uuids=gpu_uuids,
        gpu_devices=gpu_devices,
        keeps_spare=True,
        now_ms=now_ms,
    )
    if os.geteuid() != 0:
        return Chosen(executor, "a container engine answers")
    try:
        await _try_sandbox()
    except SandboxUnavailable as error:
        return Chosen(executor, f"a container engine answers; no job is root, as there is no sandbox: {error.message}")
    from torg_node.executors.rooted import RootedExecutor

    rooted = RootedExecutor(executor, state_root / "rooted", now_ms)
    return Chosen(rooted, "a container engine answers, and a sandbox for root")


async def _sandbox(state_root: Path, image_root: Path | None, why: str, now_ms: Callable[[], int]) -> Chosen:
    try:
        isolation = await _try_sandbox()
    except SandboxUnavailable as error:
        raise ExecutorUnavailable(error.message, code=error.code, hint=error.hint) from error
    guard = "control groups" if isolation.cgroups else "rlimits, which bound memory per process only"
    executor = SandboxExecutor(
        state_root / "sandbox", image_root=image_root, isolation=isolation, keeps_spare=True, now_ms=now_ms
    )
    return Chosen(executor, f"{why}; limits by {guard}")


async def _try_sandbox() -> Isolation:
    """Installed is not enough: hosts may forbid user namespaces (Ubuntu 24.04, containers). Raises SandboxUnavailable."""
    isolation = isolation_here()
    await run_sandboxed(["true"], limits=TRIAL_LIMITS, timeout_s=TRIAL_TIMEOUT_S)
    return isolation
