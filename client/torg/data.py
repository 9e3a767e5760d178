"""Named data: directories and files that are kept in the marketplace's store for more than one job."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from torg.blobs import BlobTransfer
from torg.transport import ByteProgress, Transport
from torg_host.archive import PackedTree, unpack
from torg_protocol.data import DataView
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.ids import Digest, hex_of
from torg_protocol.jobspec import BlobRef, JobSpec


class DataNames:
    def __init__(self, transport: Transport, blobs: BlobTransfer) -> None:
        self._transport = transport
        self._blobs = blobs

    async def put(self, name: str, source: Path, on_bytes: ByteProgress | None = None) -> DataView:
        """Packs a directory (without what its .torgignore or .gitignore leaves out) or one file, uploads what the store lacks, and names
        it; a name that is there moves. Safe to repeat. Raises Invalid `path_missing`."""
        packed = await upload_tree(self._blobs, source, on_bytes)
        body = {"digest": packed.digest, "size_bytes": packed.size_bytes}
        return await self._transport.ask(DataView, "PUT", f"/v1/data/{_quoted(name)}", body=body)

    async def get(self, name: str, destination: Path, on_bytes: ByteProgress | None = None) -> DataView:
        """Unpacks it as `destination`, which must be absent or an empty directory; checked against its digest before. Goes on where an
        earlier call was cut off. Raises NotFound `data_unknown`, Conflict `destination_exists`."""
        check_free(destination)
        view = await self._transport.ask(DataView, "GET", f"/v1/data/{_quoted(name)}")
        await download_tree(self._blobs, view.digest, destination, on_bytes)
        return view

    async def pin(self, spec: JobSpec) -> JobSpec:
        """The spec with the blobs that its names stand for now. Raises Invalid `data_unknown`, which names the field."""
        blobs: dict[str, BlobRef] = {}
        for field, name in spec.named_data():
            try:
                view = await self._transport.ask(DataView, "GET", f"/v1/data/{_quoted(name)}")
            except NotFound as error:
                if error.code != "data_unknown":
                    raise
                problem = {"field": field, "message": error.message, "value": name, "hint": error.hint}
                raise Invalid(
                    error.message, code=error.code, field=field, value=name, hint=error.hint, problems=[problem]
                ) from error
            blobs[name] = BlobRef(digest=view.digest, size_bytes=view.size_bytes)
        return spec.with_data(blobs) if blobs else spec

    async def remove(self, name: str) -> DataView:
        """Takes the name away; jobs that use the data keep it."""
        return await self._transport.ask(DataView, "DELETE", f"/v1/data/{_quoted(name)}")


async def upload_tree(
    blobs: BlobTransfer, source: Path, on_bytes: ByteProgress | None, *, ignore: bool = True
) -> PackedTree:
    """Packs a directory or one file and uploads what the store lacks of it. `ignore`: without what ignore files name. Raises Invalid
    `path_missing`."""
    if not (source.is_dir() or source.is_file()):
        raise Invalid(
            "there is no such file or folder",
            code="path_missing",
            field="path",
            value=str(source),
            hint=f"a path is relative to where you are, {Path.cwd()}",
        )
    return await blobs.store_tree(source, on_bytes, ignore=ignore)


async def download_tree(blobs: BlobTransfer, digest: Digest, destination: Path, on_bytes: ByteProgress | None) -> None:
    """Unpacks it as `destination`. Goes on where an earlier call was cut off. Raises Conflict `destination_exists`."""
    check_free(destination)
    parent = destination.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    archive = parent / f".torg-{hex_of(digest)[:32]}.tar.zst"
    try:
        await blobs.fetch(digest, archive, parent, on_bytes)
        await unpack_stoppably(archive, destination)
    finally:
        archive.unlink(missing_ok=True)


async def unpack_stoppably(archive: Path, destination: Path) -> None:
    """When this is cancelled, the thread that unpacks stops with its piece and leaves nothing; else a Ctrl-C would wait for the whole tree."""
    stopped = threading.Event()
    try:
        await asyncio.to_thread(unpack, archive, destination, is_wanted=lambda: not stopped.is_set())
    finally:
        stopped.set()


def check_free(destination: Path) -> None:
    """Raises Conflict `destination_exists`."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise Conflict(
            "there is something already",
            code="destination_exists",
            field="path",
            value=str(destination),
            hint="name a folder that is empty or not there yet: -o DIR",
        )


def _quoted(name: str) -> str:
    """A name as part of a path: nothing that a user types may change which path is asked."""
    if not name.isascii() or not name.replace("-", "").replace(".", "").replace("_", "").isalnum() or len(name) > 32:
        raise Invalid(
            "not a name for data",
            code="data_name_invalid",
            field="name",
            value=name,
            hint="up to 32 small letters, digits, dots, dashes and underscores, a letter or digit first",
        )
    return name
