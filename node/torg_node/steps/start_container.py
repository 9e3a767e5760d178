"""Start the container: exactly once per lease, whatever happens to this agent meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from torg_node.egress.process import EgressOrder, start_proxy
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import PROXY_PORT, LaunchSpec, Mount, ResourceLimits
from torg_node.lease import CHECKPOINT, OUTPUT, TORG, WORK, Lease, LeaseEnded
from torg_protocol.jobspec import JobSpec
from torg_protocol.messages import Started
from torg_protocol.network import EgressList
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.tasks import HOST_PYTHON

_PROXY_URL = f"http://127.0.0.1:{PROXY_PORT}"
# No ALL_PROXY: libraries that lack SOCKS support refuse to start when they see it.
_PROXY_ENV = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _PROXY_URL),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
    "TORG_SOCKS_PROXY": f"socks5h://127.0.0.1:{PROXY_PORT}",
}


class StartContainer:
    name = "start the container"

    async def do(self, lease: Lease) -> None:
        """The intent is journalled first. An intent without a handle means that the agent died in between: whether a container
        ran is not known, so this node does not run it again (start-up has reaped it)."""
        node = lease.node
        if lease.handle is not None:
            if not await node.executor.reattach(lease.handle):
                raise LeaseEnded(EndReason.START_FAILED, "the container is gone")
        else:
            entry = node.journal.lease(lease.id)
            if entry is not None and entry.starting:
                raise LeaseEnded(EndReason.START_FAILED, "the agent was killed while it started the container")
            lease.check_not_stopped()
            node.journal.intend_start(lease.id)
            try:
                with contextlib.ExitStack() as held:
                    proxy = held.enter_context(await asyncio.to_thread(_proxy, lease)) if lease.has_egress else None
                    lease.handle = await node.executor.start(_launch(lease, proxy))
            except ExecutorError as error:
                fault = EndReason.INPUT_INVALID if error.code == "command_not_found" else EndReason.START_FAILED
                raise LeaseEnded(fault, str(error)) from error
            node.journal.set_handle(lease.id, lease.handle)
        if not node.journal.has_said(lease.id, ["started"]):
            await lease.say(
                Started(
                    started_at_ms=lease.handle.started_at_ms,
                    image_digest=lease.image.digest if lease.image else "",
                    executor=node.executor.name,
                    isolation=node.isolation,
                    gpu_uuids=lease.assignment.gpu_uuids,
                )
            )
            lease.set_state(LeaseState.RUNNING)

    async def undo(self, lease: Lease) -> None:
        if lease.handle is not None:
            await lease.node.executor.stop(lease.handle, 0)
            await lease.node.executor.remove(lease.handle)


def _proxy(lease: Lease) -> socket.socket:
    """The lease's own proxy, waiting for a listener in the container. It ends with the container, or when nobody hands one over."""
    network, settings = lease.spec.network, lease.node.settings
    order = EgressOrder(
        allow=network.allow if isinstance(network, EgressList) else None,
        bytes_per_s=settings.egress_bytes_per_s,
        opened=tuple(map(str, settings.egress_networks)),
    )
    return start_proxy(order, lease.folder)


def _launch(lease: Lease, proxy: socket.socket | None) -> LaunchSpec:
    spec, resources, assignment = lease.spec, lease.spec.resources, lease.assignment
    if lease.image is None:
        raise LeaseEnded(EndReason.START_FAILED, "the image was not prepared")
    env = {
        **(_PROXY_ENV if proxy else {}),
        **spec.env,
        "HOME": WORK,
        "TORG_CHECKPOINT_DIR": CHECKPOINT,
        "TORG_OUTPUT_DIR": OUTPUT,
        "TORG_PROGRESS_FILE": f"{TORG}/progress.jsonl",
        "TORG_JOB_ID": lease.grant.job_id,
        "TORG_ATTEMPT": str(lease.grant.attempt),
    }
    folders = (("work", WORK), ("checkpoint", CHECKPOINT), ("output", OUTPUT), ("torg", TORG))
    return LaunchSpec(
        name=lease.container_name,
        image=lease.image.reference,
        command=spec.command,
        args=spec.args,
        env=env,
        workdir=_workdir(spec),
        mounts=tuple(Mount(lease.files / name, target, writable=True) for name, target in folders),
        limits=ResourceLimits(
            memory_bytes=resources.memory,
            cpu_millis=resources.cpus,
            disk_bytes=resources.disk,
            shm_bytes=resources.shm,
        ),
        max_duration_ms=lease.grant.max_duration_ms,
        gpu_uuids=assignment.gpu_uuids,
        cpus=assignment.cpus,
        proxy=proxy,
        labels={"torg.lease": lease.id, "torg.job": lease.grant.job_id},
    )


def _workdir(spec: JobSpec) -> str:
    """Empty: the image's own, which host-python has not."""
    if spec.workdir == "image":
        return WORK if spec.image == HOST_PYTHON else ""
    return spec.workdir or WORK
