"""Start the container: exactly once per lease, whatever happens to this agent meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from torg_node.egress.process import EgressOrder, start_proxy
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import (
    OWN_ROOT_EXECUTOR,
    OWN_ROOT_ISOLATION,
    PROXY_PORT,
    Handle,
    LaunchSpec,
    Mount,
    PreparedImage,
    ResourceLimits,
)
from torg_node.gang_addresses import gang_env
from torg_node.lease import CHECKPOINT, OUTPUT, SECRETS, TORG, WORK, Lease, LeaseEnded
from torg_node.steps.energy import note_energy
from torg_node.steps.fetch_inputs import input_mounts
from torg_node.steps.make_workspace import VOLUMES
from torg_node.steps.open_secrets import secrets_folder
from torg_protocol.canonical import digest_of
from torg_protocol.messages import Started
from torg_protocol.network import EgressList
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.tasks import HOST_PYTHON

ROOTS = "roots"  # what containers with `root: true` write to their own files
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
                    proxy = (
                        held.enter_context(await asyncio.to_thread(proxy_of, lease, lease.folder))
                        if lease.has_egress
                        else None
                    )
                    lease.handle = await node.executor.start(launch_of(lease, lease.image_of(lease.spec.image), proxy))
            except ExecutorError as error:
                fault = EndReason.INPUT_INVALID if error.code == "command_not_found" else EndReason.START_FAILED
                raise LeaseEnded(fault, str(error)) from error
        await say_started(lease, lease.handle.started_at_ms, lease.handle)

    async def undo(self, lease: Lease) -> None:
        if lease.handle is not None:
            await lease.node.executor.stop(lease.handle, 0)
            await lease.node.executor.remove(lease.handle)


def proxy_of(lease: Lease, folder: Path) -> socket.socket:
    """A container's own proxy, waiting for a listener in it. It ends with the container, or when nobody hands one over. `folder`: where it
    counts."""
    network, settings = lease.spec.network, lease.node.settings
    order = EgressOrder(
        allow=network.allow if isinstance(network, EgressList) else None,
        bytes_per_s=settings.egress_bytes_per_s,
        opened=tuple(map(str, settings.egress_networks)),
    )
    return start_proxy(order, folder)


async def say_started(lease: Lease, started_at_ms: int, handle: Handle | None = None) -> None:
    """Useful time begins. Said once. `handle`: of the lease's only container, journalled together with it."""
    if lease.node.journal.has_said(lease.id, ["started"]):
        return
    digests = [lease.image_of(image).digest for image in lease.spec.images]
    await lease.say(
        Started(
            started_at_ms=started_at_ms,
            image_digest=digests[0] if len(digests) == 1 else digest_of(digests),
            executor=OWN_ROOT_EXECUTOR if lease.spec.root else lease.node.executor.name,
            isolation=OWN_ROOT_ISOLATION if lease.spec.root else lease.node.isolation,
            gpu_uuids=lease.assignment.gpu_uuids,
        ),
        then=LeaseState.RUNNING,
        handle=handle,
    )
    await note_energy(lease)  # may ask a card's driver, for which the first line need not wait


def launch_of(lease: Lease, image: PreparedImage, proxy: socket.socket | None) -> LaunchSpec:
    spec, resources, assignment = lease.spec, lease.spec.resources, lease.assignment
    home = {} if spec.root else {"HOME": WORK}  # root's is where its image says, as other platforms have it
    env = {
        **(_PROXY_ENV if proxy else {}),
        **_gang_env(lease),
        **spec.env,
        **home,
        "TORG_CHECKPOINT_DIR": CHECKPOINT,
        "TORG_OUTPUT_DIR": OUTPUT,
        "TORG_PROGRESS_FILE": f"{TORG}/progress.jsonl",
        "TORG_JOB_ID": lease.grant.job_id,
        "TORG_ATTEMPT": str(lease.grant.attempt),
    }
    if spec.secrets is not None:
        env["TORG_SECRETS_DIR"] = SECRETS
    secrets = (Mount(secrets_folder(lease), SECRETS),) if spec.secrets is not None else ()
    folders = (("work", WORK), ("checkpoint", CHECKPOINT), ("output", OUTPUT), ("torg", TORG))
    return LaunchSpec(
        name=lease.container_name,
        image=image.reference,
        command=spec.command,
        args=spec.args,
        env=env,
        workdir=workdir_in(spec.workdir, spec.image),
        mounts=(
            *(Mount(lease.files / name, target, writable=True) for name, target in folders),
            *secrets,
            *volume_mounts(lease),
            *input_mounts(lease),
        ),
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
        own_root=lease.files / ROOTS / "job" if spec.root else None,
    )


def volume_mounts(lease: Lease) -> tuple[Mount, ...]:
    """Those that all containers see."""
    return tuple(
        Mount(lease.files / VOLUMES / name, volume.path, writable=not volume.read_only)
        for name, volume in lease.spec.volumes.items()
        if volume.path is not None
    )


def _gang_env(lease: Lease) -> dict[str, str]:
    place, gang = lease.grant.gang, lease.spec.gang
    return {} if place is None or gang is None else gang_env(place.rank, gang, lease.grant.job_id)


def workdir_in(asked: str | None, image: str) -> str:
    """Empty: the image's own, which host-python has not."""
    if asked == "image":
        return WORK if image == HOST_PYTHON else ""
    return asked or WORK
