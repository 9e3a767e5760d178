"""What an executor isolates, found out by trying: four containers, run at once, each doing what a hostile job would.

An offer declares only what passed here; where a wall is missing (and not just a limit), a node does not start. `torg-node doctor`
prints the failures with their reasons.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import platform
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torg_host.disk import QuotaDisk
from torg_host.sandbox.images import HOST_PYTHON
from torg_host.sandbox.processes import start_time
from torg_node.egress.process import EgressOrder, start_proxy
from torg_node.executors.errors import ExecutorError, ExecutorUnavailable
from torg_node.executors.port import (
    PROXY_PORT,
    Capabilities,
    Executor,
    Exit,
    ExitReason,
    LaunchSpec,
    Mount,
    ResourceLimits,
)
from torg_protocol.errors import TorgError

PROGRAM = Path(__file__).with_name("probe_inside.py")
MIB = 1 << 20
LIMITS = ResourceLimits(
    memory_bytes=96 * MIB, cpu_millis=1000, disk_bytes=32 * MIB, shm_bytes=8 * MIB, pids=32, log_bytes=MIB
)
MAX_DURATION_MS = 60_000
SCRATCH = "/scratch"

INSPECTED = (
    "no-network",
    "no-new-privileges",
    "not-host-root",
    "seccomp",
    "no-mount",
    "no-namespaces",
    "no-raw-sockets",
    "no-io-uring",
    "no-keyrings",
    "no-tracing",
    "no-kernel-loading",
    "proc-and-sys-read-only",
    "root-read-only",
    "own-processes-only",
    "no-host-files",
    "shm-limit",
    "tmp-limit",
)


# What bounds a job's use of this host. Without one a job may disturb its neighbours; without any of the others it may get out.
LIMIT_PROBES = frozenset({"shm-limit", "tmp-limit", "pids-limit", "memory-limit", "disk-limit"})
# What a hostile job may ask of the host's kernel. Under gVisor its own kernel answers, which may well allow it: there `own-kernel` takes their place.
KERNEL_PROBES = frozenset(
    {
        "seccomp",
        "no-mount",
        "no-namespaces",
        "no-raw-sockets",
        "no-io-uring",
        "no-keyrings",
        "no-tracing",
        "no-kernel-loading",
    }
)
GPU_PROBE = "gpu"  # no wall: a job that asks for none runs all the same
DEADLINE_PROBE = "deadline-without-agent"  # a job of a dead agent runs on beyond its time, until the agent is back
OWN_ROOT_PROBE = (
    "own-root"  # containers may run as their images want: as root, of a user namespace, and write to their own files
)
EGRESS_PROBE = "egress"  # a job reaches its proxy, and nothing else. Without it no egress is offered


@dataclass(frozen=True, slots=True)
class Ran:
    exit: Exit
    findings: dict[str, str | None]  # empty when the program did not get to its end
    stderr: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One container that answers for `names`. `must_end` is how it ends where the limits hold; None: by itself."""

    names: tuple[str, ...]
    arguments: tuple[str, ...]
    must_end: ExitReason | None = None

    def judge(self, ran: Ran) -> dict[str, str | None]:
        """Each name's reason for failing, or None."""
        if ran.findings:
            return ran.findings
        if self.must_end is not None and ran.exit.reason is self.must_end:
            return dict.fromkeys(self.names)
        reason = f"the probe ended with {ran.exit.reason}, code {ran.exit.code}: {ran.stderr[-300:]}"
        return dict.fromkeys(self.names, reason)


async def probe_executor(
    executor: Executor, *, image: str, isolation: str, version: str, gpu: bool = False
) -> Capabilities:
    """`image` must have `python` on its path. Takes about a second. Never raises for a probe that fails."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory(prefix="torg-probe-") as scratch,
    ):
        port = listener.getsockname()[1]
        results = await asyncio.gather(
            *(_run(executor, image, probe, Path(scratch)) for probe in _probes(port, isolation))
        )
    not_asked = KERNEL_PROBES if isolation == "gvisor" else frozenset()
    reasons = {name: reason for result in results for name, reason in result.items() if name not in not_asked}
    return Capabilities(
        executor=executor.name,
        version=version,
        isolation=isolation,
        verified=tuple(name for name, reason in reasons.items() if reason is None),
        failed=tuple(f"{name}: {reason}" for name, reason in reasons.items() if reason is not None),
        gpu=gpu,
    )


def check_walls(capabilities: Capabilities) -> None:
    """Raises ExecutorUnavailable `isolation_broken` when a probe failed that is about getting out."""
    broken = [
        failure
        for failure in capabilities.failed
        if failure.partition(":")[0] not in LIMIT_PROBES | {EGRESS_PROBE, DEADLINE_PROBE, GPU_PROBE}
    ]
    if broken:
        raise ExecutorUnavailable(
            f"this host does not keep jobs in, no offer is made: {'; '.join(broken)}",
            code="isolation_broken",
            field="executor",
            value=capabilities.executor,
            hint="torg-node doctor lists what holds and what does not.",
        )


def _probes(host_port: int, isolation: str) -> tuple[Probe, ...]:
    agent = str(start_time(os.getpid()))
    tmp_bytes = min(LIMITS.disk_bytes, LIMITS.memory_bytes // 2)
    kernel = (Probe(("own-kernel",), ("kernel", platform.release())),) if isolation == "gvisor" else ()
    return (
        *kernel,
        Probe(INSPECTED, ("inspect", str(host_port), agent, str(LIMITS.shm_bytes), str(tmp_bytes))),
        Probe(("pids-limit",), ("forks", str(LIMITS.pids))),
        Probe(("memory-limit",), ("memory", str(LIMITS.memory_bytes)), ExitReason.OOM),
        Probe(("disk-limit",), ("disk", SCRATCH, str(LIMITS.disk_bytes)), ExitReason.DISK_FULL),
    )


async def with_egress(executor: Executor, found: Capabilities, image: str = HOST_PYTHON) -> Capabilities:
    """What was `found`, and whether a container's way out is its proxy and only that: asked of owners who lend their network."""
    probe = Probe((EGRESS_PROBE,), ("egress",))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory(prefix="torg-probe-") as scratch,
    ):
        ports = (str(PROXY_PORT), str(listener.getsockname()[1]))
        with start_proxy(EgressOrder(allow=None, bytes_per_s=0), Path(scratch)) as proxy:
            probe = dataclasses.replace(probe, arguments=(*probe.arguments, *ports))
            reason = (await _run(executor, image, probe, Path(scratch), proxy))[EGRESS_PROBE]
    if reason is None:
        return dataclasses.replace(found, verified=(*found.verified, EGRESS_PROBE))
    return dataclasses.replace(found, failed=(*found.failed, f"{EGRESS_PROBE}: {reason}"))


async def with_own_root(executor: Executor, found: Capabilities, image: str = HOST_PYTHON) -> Capabilities:
    """What was `found`, and whether containers may run as root of a user namespace: it is nobody outside, may nothing outside, and what it
    writes is bounded by a disk of its own."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory(prefix="torg-probe-") as folder,
    ):
        disk = QuotaDisk(Path(folder) / "disk", LIMITS.disk_bytes)
        try:
            state = await asyncio.to_thread(disk.open)
            arguments = ("own-root", str(listener.getsockname()[1]), str(start_time(os.getpid())))
            probe = Probe((OWN_ROOT_PROBE,), (*arguments, str(LIMITS.disk_bytes)))
            if state.enforced:
                reason = (await _run(executor, image, probe, state.files, own_root=state.files / "root"))[
                    OWN_ROOT_PROBE
                ]
            else:
                reason = state.why
        except (OSError, TorgError) as error:
            reason = f"no disk to bound it: {error}"
        finally:
            await asyncio.to_thread(disk.remove)
    if reason is None:
        return dataclasses.replace(found, verified=(*found.verified, OWN_ROOT_PROBE))
    return dataclasses.replace(found, not_offered=(*found.not_offered, f"{OWN_ROOT_PROBE}: {reason}"))


async def _run(
    executor: Executor,
    image: str,
    probe: Probe,
    scratch: Path,
    proxy: socket.socket | None = None,
    own_root: Path | None = None,
) -> dict[str, str | None]:
    writable = scratch.resolve() / probe.arguments[0]
    writable.mkdir()
    writable.chmod(0o777)
    launch = LaunchSpec(
        name=f"probe-{probe.arguments[0]}-{secrets.token_hex(4)}",
        image=image,
        command=("python", "-c", PROGRAM.read_text(), *probe.arguments),
        env={},
        workdir="/",
        mounts=(Mount(writable, SCRATCH, writable=True),),
        limits=LIMITS,
        max_duration_ms=MAX_DURATION_MS,
        proxy=proxy,
        own_root=own_root,
    )
    try:
        findings = probe.judge(await _ran(executor, launch))
        if (owned := writable / "owner").exists() and owned.stat().st_uid == 0:
            name = "not-host-root" if own_root is None else OWN_ROOT_PROBE
            findings[name] = "what the job writes belongs to the host's root"
        return findings
    except ExecutorError as error:
        return dict.fromkeys(probe.names, f"the container failed: {error.message}")


async def _ran(executor: Executor, launch: LaunchSpec) -> Ran:
    handle = await executor.start(launch)
    try:
        ended = await executor.wait(handle)
        output = {"stdout": b"", "stderr": b""}
        async for chunk in executor.logs(handle):
            output[chunk.stream] += chunk.data
    finally:
        await executor.remove(handle)
    try:
        findings = json.loads(output["stdout"])
    except ValueError:
        findings = {}
    return Ran(ended, findings, output["stderr"].decode(errors="replace"))
