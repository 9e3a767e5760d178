"""Make the workspace: a bounded disk with the folders that the job sees, and the job's inputs in them."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from torg_host.archive import UnpackLimits, unpack
from torg_host.disk import QuotaDisk
from torg_node.lease import Lease, LeaseEnded
from torg_node.sealing import open_sealed
from torg_protocol.errors import TorgError
from torg_protocol.jobspec import BlobRef
from torg_protocol.states import EndReason

JOB_USER = (65534, 65534)  # whom the executors run jobs as
_FOLDERS = ("work", "checkpoint", "output", "torg")
VOLUMES = "volumes"  # those that tasks share
_READY = ".ready"


class BeginDisk:
    """Its disk takes a while to make, which the answers of the chain can have too. In the order of steps the grant's signature is checked
    before, and `MakeWorkspace` waits for it."""

    name = "begin the disk"

    async def do(self, lease: Lease) -> None:
        lease.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lease.disk_begun = asyncio.ensure_future(asyncio.to_thread(_disk(lease).open))

    async def undo(self, lease: Lease) -> None:
        """`MakeWorkspace` undoes it."""


class MakeWorkspace:
    name = "make the workspace"

    async def do(self, lease: Lease) -> None:
        """After a restart the disk is mounted again and what is there stays."""
        disk_bytes = lease.spec.resources.disk
        try:
            if lease.disk_begun is not None:
                await asyncio.shield(lease.disk_begun)
        except (OSError, TorgError) as error:
            raise LeaseEnded(EndReason.START_FAILED, f"no disk for the job: {error}") from error
        if (lease.folder / _READY).exists():
            return
        for name in _FOLDERS:
            (lease.files / name).mkdir(exist_ok=True)
        for name in lease.spec.volumes:
            (lease.files / VOLUMES / name).mkdir(parents=True, exist_ok=True)
        limits = UnpackLimits(max_bytes=disk_bytes)
        if lease.spec.workspace is not None:
            await lease.preparing("workspace", 0, lease.spec.workspace.size_bytes)
            await bring(lease, lease.spec.workspace, lease.files / "work", limits, keep=True)
        if lease.grant.resume_from is not None:
            checkpoint = lease.grant.resume_from
            await lease.preparing(f"checkpoint {checkpoint.name}", 0, checkpoint.blob.size_bytes)
            await bring(lease, checkpoint.blob, lease.files / "checkpoint" / checkpoint.name, limits, keep=False)
            lease.stored_checkpoints.add(checkpoint.name)
            lease.node.journal.add_checkpoint(lease.id, checkpoint.name)
        await asyncio.to_thread(give_to_job, lease.files)
        (lease.folder / _READY).touch()

    async def undo(self, lease: Lease) -> None:
        if lease.disk_begun is not None:
            await asyncio.gather(
                asyncio.shield(lease.disk_begun), return_exceptions=True
            )  # one that failed was said by `do`, if it came so far
        await asyncio.to_thread(_disk(lease).remove)
        await asyncio.to_thread(shutil.rmtree, lease.folder, ignore_errors=True)


def _disk(lease: Lease) -> QuotaDisk:
    """Its files are at `lease.files`, which is where QuotaDisk puts them."""
    settings = lease.node.settings
    return QuotaDisk(lease.folder / "disk", lease.spec.resources.disk, blanks=settings.blanks_path)


async def bring(lease: Lease, blob: BlobRef, target: Path, limits: UnpackLimits, *, keep: bool) -> None:
    """Fetches an archive and unpacks it as `target`. What is wrong with it is the client's fault, not this node's. `keep`: for
    the next job that wants it."""
    archive = lease.folder / "incoming.tar.zst"
    try:
        await fetch(lease, blob, archive, keep=keep)
        if lease.spec.sealed is not None:
            await asyncio.to_thread(open_sealed, lease, archive)
        if target.exists():
            target.rmdir()
        await asyncio.to_thread(unpack, archive, target, limits)
    except TorgError as error:
        raise LeaseEnded(EndReason.INPUT_INVALID, str(error)) from error
    finally:
        archive.unlink(missing_ok=True)


async def fetch(lease: Lease, blob: BlobRef, archive: Path, *, keep: bool, max_bytes: int | None = None) -> None:
    """From the cache or the store, unless the lease is stopped meanwhile. Raises LeaseEnded then, and Invalid for a blob that is not right."""
    archive.unlink(missing_ok=True)  # of an agent that was killed
    if await asyncio.to_thread(lease.node.cache.take_blob, blob.digest, archive):
        return
    fetching = asyncio.ensure_future(lease.node.blobs.fetch(blob, archive, max_bytes))
    stopping = asyncio.ensure_future(lease.stop_requested.wait())
    try:
        await asyncio.wait({fetching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        lease.check_not_stopped()
        await fetching
    finally:
        for task in (fetching, stopping):
            task.cancel()
        await asyncio.gather(fetching, stopping, return_exceptions=True)
    if keep:
        await asyncio.to_thread(lease.node.cache.keep_blob, blob.digest, archive)


def give_to_job(root: Path) -> None:
    """The job's user owns what it may write. Without root the agent's own user runs the job already."""
    if os.geteuid() != 0:
        return
    for folder, names, files in os.walk(root):
        os.chown(folder, *JOB_USER, follow_symlinks=False)
        for name in (*names, *files):
            os.chown(os.path.join(folder, name), *JOB_USER, follow_symlinks=False)  # noqa: PTH118 - hot for large trees
