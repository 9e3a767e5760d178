"""Volumes: directories that jobs share with the jobs after them, put into the store and got from it."""

from __future__ import annotations

import re
from pathlib import Path

from torg.blobs import BlobTransfer
from torg.data import check_free, download_tree, upload_tree
from torg.transport import ByteProgress, Transport
from torg_protocol.api import JobView
from torg_protocol.errors import Invalid, NotFound
from torg_protocol.volumes import VOLUME_NAME, JobVolume, VolumeView


class Volumes:
    def __init__(self, transport: Transport, blobs: BlobTransfer) -> None:
        self._transport = transport
        self._blobs = blobs

    async def view(self, name: str) -> VolumeView:
        """Raises NotFound `volume_unknown`."""
        return await self._transport.ask(VolumeView, "GET", _path(name))

    async def put(
        self, name: str, source: Path, *, generation: int | None = None, on_bytes: ByteProgress | None = None
    ) -> VolumeView:
        """All of a folder (or one file), whatever ignore files say, becomes the volume's next generation. Raises Invalid `path_missing`, Conflict
        `volume_busy`, `volume_moved`."""
        path = _path(name)
        packed = await upload_tree(self._blobs, source, on_bytes, ignore=False)
        body = {"digest": packed.digest, "size_bytes": packed.size_bytes, "generation": generation}
        return await self._transport.ask(VolumeView, "PUT", path, body=body)

    async def get(self, name: str, destination: Path, on_bytes: ByteProgress | None = None) -> VolumeView:
        """Its newest generation. Raises NotFound `volume_unknown`, `volume_empty`; Conflict `destination_exists`."""
        check_free(destination)
        view = await self.view(name)
        if view.digest is None:
            raise _empty(name, f"nothing is in it yet{f'; {view.writer} writes it' if view.writer else ''}")
        await download_tree(self._blobs, view.digest, destination, on_bytes)
        return view

    async def get_left(
        self, job: JobView, name: str, destination: Path, on_bytes: ByteProgress | None = None
    ) -> JobVolume:
        """What a job stored last of it, also when it failed. Raises NotFound `volume_unknown`, `volume_empty`; Conflict `destination_exists`."""
        found = next((item for item in job.volumes if item.name == name), None)
        if found is None:
            raise NotFound(
                "this job has no volume of this name",
                code="volume_unknown",
                field="name",
                value=name,
                hint=f"it has: {', '.join(item.name for item in job.volumes) or 'none'}",
            )
        if found.digest is None:
            raise _empty(name, "this job has stored nothing of it" + (f": {found.detail}" if found.detail else ""))
        await download_tree(self._blobs, found.digest, destination, on_bytes)
        return found

    async def remove(self, name: str) -> VolumeView:
        """Raises NotFound `volume_unknown`, Conflict `volume_in_use`."""
        return await self._transport.ask(VolumeView, "DELETE", _path(name))


def _empty(name: str, why: str) -> NotFound:
    return NotFound(why, code="volume_empty", field="name", value=name, hint="see: torg volume show " + name)


def _path(name: str) -> str:
    """Nothing that a user types may change which path is asked."""
    if re.fullmatch(VOLUME_NAME, name) is None:
        raise Invalid(
            "not a name for a volume",
            code="volume_name_invalid",
            field="name",
            value=name,
            hint="up to 63 small letters, digits, dots, dashes and underscores, a letter or digit first",
        )
    return f"/v1/volumes/{name}"
