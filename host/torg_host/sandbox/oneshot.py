"""Runs an untrusted program to its end and returns what it printed: how the marketplace evaluates a model it was sent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torg_host.sandbox.command import TMP, ContainerSpec, SandboxLimits
from torg_host.sandbox.container import Container, Reason
from torg_host.sandbox.images import Image, SandboxMount, host_python
from torg_host.sandbox.launch import launch


@dataclass(frozen=True, slots=True)
class CompletedRun:
    code: int | None  # None when the sandbox itself was killed
    reason: Reason  # "exited" when it ended by itself, with any code
    stdout: bytes  # the newest `log_bytes` of both streams together
    stderr: bytes
    duration_ms: int
    peak_memory_bytes: int | None
    detail: str = ""

    @property
    def succeeded(self) -> bool:
        return self.reason == "exited" and self.code == 0


async def run_sandboxed(
    argv: Sequence[str],
    *,
    mounts: Sequence[SandboxMount] = (),
    limits: SandboxLimits,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    workdir: str = TMP,
    image: Image | None = None,
) -> CompletedRun:
    """No network, no other files than the image's and the mounts'. The default image is this interpreter with its packages.

    At `timeout_s` it ends with reason "max_duration". When the caller is cancelled, or dies, the program is killed.
    Raises Invalid for a spec that cannot be right and SandboxUnavailable when this host cannot run it; a program that fails is no
    exception but a CompletedRun.
    """
    scratch = Path(tempfile.mkdtemp(prefix="torg-run-")).resolve()
    state_dir = scratch / f"run-{os.getpid()}"
    spec = ContainerSpec(
        command=tuple(argv),
        image=image or host_python(),
        limits=limits,
        max_duration_ms=round(timeout_s * 1000),
        env=env or {},
        mounts=tuple(SandboxMount(mount.source.resolve(), mount.target, mount.writable) for mount in mounts),
        stdin=stdin,
        workdir=workdir,
    )
    far, lifeline = os.pipe()
    try:
        try:
            container = await launch(spec, state_dir, lifeline=far)
        finally:
            os.close(far)
        return await _result(container)
    finally:
        try:
            await Container(state_dir).remove()
        finally:
            os.close(lifeline)  # after the removal: the shim would clean up at the same time
            shutil.rmtree(scratch, ignore_errors=True)


async def _result(container: Container) -> CompletedRun:
    outcome = await container.wait()
    output = {"stdout": b"", "stderr": b""}
    async for piece in container.follow_logs():
        output[piece.stream] += piece.data
    return CompletedRun(
        code=outcome.code,
        reason=outcome.reason,
        stdout=output["stdout"],
        stderr=output["stderr"],
        duration_ms=outcome.finished_at_ms - outcome.started_at_ms,
        peak_memory_bytes=outcome.peak_memory_bytes,
        detail=outcome.detail,
    )
