"""Volumes that are kept: brought before the containers start, stored beside checkpoints and when the containers have ended.

A snapshot is the whole directory, packed like a workspace; of it only the pieces travel that the store lacks. One that is taken while the job
runs counts only if nothing in the volume changed while it was read. What the node has packed it keeps: the next job may come here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from torg_host.archive import PackedTree, UnpackLimits, pack
from torg_node.lease import Lease
from torg_node.steps.make_workspace import VOLUMES, bring, give_to_job
from torg_protocol.errors import TorgError
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import VolumeSnapshot, VolumesStored

MAX_FILES = 1_000_000
_READY = ".volumes-ready"
_KEPT = ".volumes-kept"
_TRIES = 3  # to read a volume in which the job writes


class BringVolumes:
    name = "bring the volumes"

    async def do(self, lease: Lease) -> None:
        """After a restart those of before stay, with what the containers have written."""
        if not lease.grant.volumes or (lease.folder / _READY).exists():
            return
        for at_start in lease.grant.volumes:
            lease.check_not_stopped()
            folder = volume_folder(lease, at_start.name)
            await asyncio.to_thread(
                shutil.rmtree, folder, ignore_errors=True
            )  # half of it, of an agent that was killed
            folder.mkdir()
            if at_start.blob is not None:
                await lease.preparing(f"volume {at_start.name}", 0, at_start.blob.size_bytes)
                limits = UnpackLimits(max_bytes=lease.spec.resources.disk, max_files=MAX_FILES)
                await bring(lease, at_start.blob, folder, limits, keep=True)
            await asyncio.to_thread(give_to_job, folder)
        (lease.folder / _READY).touch()

    async def undo(self, lease: Lease) -> None:
        """They go with the job's disk."""


class KeepVolumes:
    name = "keep the volumes"

    async def do(self, lease: Lease) -> None:
        """Said once, whatever the job's end: the marketplace decides what becomes of them."""
        if lease.exit is None or (lease.folder / _KEPT).exists():
            return
        await store_volumes(lease, at_end=True)
        (lease.folder / _KEPT).touch()

    async def undo(self, lease: Lease) -> None:
        """What is in the store is the client's."""


def volume_folder(lease: Lease, name: str) -> Path:
    return lease.files / VOLUMES / name


async def store_volumes(lease: Lease, *, at_end: bool) -> None:
    """Of a gang, those of rank 0. Before the end: all that the job writes, if they are at rest and differ from what was stored; else none."""
    names = lease.spec.written_volumes
    if not names or not lease.hands_over:
        return
    snapshots = [await _stored(lease, name, at_end=at_end) for name in names]
    found = tuple(snapshot for snapshot in snapshots if snapshot is not None)
    if not at_end:
        stored = {snapshot.name: snapshot.blob for snapshot in found}
        if len(stored) < len(names) or stored == lease.stored_volumes:
            return
        lease.stored_volumes = stored
    await lease.say(VolumesStored(volumes=found, at_end=at_end))


async def _stored(lease: Lease, name: str, *, at_end: bool) -> VolumeSnapshot | None:
    """Before the end None: it could not be read in peace."""
    archive = lease.folder / f"volume-{name}.tar.zst"
    volume = lease.spec.volumes[name]
    limits = UnpackLimits(max_bytes=volume.max_size or lease.spec.resources.disk, max_files=MAX_FILES)
    try:
        read = _packed if at_end else _packed_at_rest
        packed = await asyncio.to_thread(read, volume_folder(lease, name), archive, limits)
        if packed is None:
            return None
        begun = next((item.blob for item in lease.grant.volumes if item.name == name), None)
        blob = await lease.node.blobs.store(archive, packed, based_on=begun.digest if begun is not None else None)
        await asyncio.to_thread(lease.node.cache.keep_blob, blob.digest, archive)
    except (OSError, TorgError) as error:
        return VolumeSnapshot(name=name, problem=_in_words(error)) if at_end else None
    finally:
        archive.unlink(missing_ok=True)
    return VolumeSnapshot(name=name, blob=BlobRef(digest=blob.digest, size_bytes=blob.size_bytes))


def _packed(folder: Path, archive: Path, limits: UnpackLimits) -> PackedTree:
    """Files, directories, and links that stay inside; sockets and pipes are of the moment and are left out."""
    return pack(folder, archive, ignore=False, skip_odd=True, limits=limits)


def _packed_at_rest(folder: Path, archive: Path, limits: UnpackLimits) -> PackedTree | None:
    """None when the job wrote in it each time."""
    for _ in range(_TRIES):
        before = sorted(_marks(folder))
        try:
            packed = _packed(folder, archive, limits)
        except TorgError as error:
            if error.code != "archive_changed":
                raise
            continue
        if sorted(_marks(folder)) == before:
            return packed
    return None


def _marks(folder: Path) -> Iterator[tuple[str, int, int, int, int]]:
    """What differs when a file was written, replaced, or gone."""
    for root, _, files in os.walk(folder, followlinks=False):
        for path in (root, *(f"{root}/{name}" for name in files)):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if not stat.S_ISSOCK(status.st_mode):
                yield path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _in_words(error: OSError | TorgError) -> str:
    if isinstance(error, TorgError) and error.code == "archive_too_large":
        return "there is more in it than its max_size, or the job's disk, allows"
    return str(error)[:500]
