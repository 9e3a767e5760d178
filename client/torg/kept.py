"""What the SDK keeps for an account in the marketplace's store: named data and volumes. A part of AsyncClient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torg.transport import ByteProgress, Transport
from torg_protocol.api import JobView
from torg_protocol.cases import QuotaView
from torg_protocol.data import DataPage, DataView
from torg_protocol.volumes import JobVolume, VolumePage, VolumeView

if TYPE_CHECKING:
    from torg.blobs import BlobTransfer
    from torg.data import DataNames
    from torg.volumes import Volumes

StageProgress = Callable[[str, int, int], None]  # what is being moved, bytes done, bytes in all


class KeptData:
    _transport: Transport

    if TYPE_CHECKING:

        async def job(self, job_id: str) -> JobView: ...

    @property
    def _blobs(self) -> BlobTransfer:
        from torg.blobs import BlobTransfer

        return BlobTransfer(self._transport)

    @property
    def _data(self) -> DataNames:
        from torg.data import DataNames

        return DataNames(self._transport, self._blobs)

    @property
    def _volumes(self) -> Volumes:
        from torg.volumes import Volumes

        return Volumes(self._transport, self._blobs)

    # --- named data -------------------------------------------------------------------------------------------------

    async def put_data(self, name: str, source: Path, *, on_progress: StageProgress | None = None) -> DataView:
        """Uploads what the store lacks of a folder or file and names it; a name that is there moves. Safe to repeat."""
        return await self._data.put(name, source, of_stage(on_progress, name))

    async def get_data(self, name: str, destination: Path, *, on_progress: StageProgress | None = None) -> DataView:
        """Unpacks it as `destination`, absent or empty before; goes on where an earlier call was cut off. Raises NotFound
        `data_unknown`, Conflict `destination_exists`."""
        return await self._data.get(name, destination, of_stage(on_progress, name))

    async def kept_data(self) -> DataPage:
        """All named data, by name, with what the account keeps in all."""
        pages = [page async for page in self._transport.ask_pages(DataPage, "/v1/data")]
        return pages[0].model_copy(
            update={"data": tuple(item for page in pages for item in page.data), "next_cursor": None}
        )

    async def list_data(self) -> tuple[DataView, ...]:
        """All named data, by name."""
        return (await self.kept_data()).data

    async def stored_bytes(self) -> int:
        """All that this account has sent and the store still has: named data, workspaces of jobs, and for a day what nothing refers to."""
        return (await self._transport.ask(DataPage, "GET", "/v1/data", query={"limit": "1"})).stored_bytes

    async def storage_quota(self) -> QuotaView | None:
        """How much of what this account may keep it does, named data and volumes together. None: the marketplace does not say."""
        return (await self._transport.ask(DataPage, "GET", "/v1/data", query={"limit": "1"})).kept

    async def remove_data(self, name: str) -> DataView:
        """Takes a name away; jobs that use the data keep it. Raises NotFound `data_unknown`."""
        return await self._data.remove(name)

    # --- volumes ----------------------------------------------------------------------------------------------------

    async def kept_volumes(self) -> VolumePage:
        """All volumes, by name, with what the account keeps in all."""
        pages = [page async for page in self._transport.ask_pages(VolumePage, "/v1/volumes")]
        found = tuple(item for page in pages for item in page.volumes)
        return pages[0].model_copy(update={"volumes": found, "next_cursor": None})

    async def list_volumes(self) -> tuple[VolumeView, ...]:
        """All volumes, by name."""
        return (await self.kept_volumes()).volumes

    async def volume(self, name: str) -> VolumeView:
        """Its newest generation, which job writes it, and which jobs use it. Raises NotFound `volume_unknown`."""
        return await self._volumes.view(name)

    async def put_volume(
        self, name: str, source: Path, *, generation: int | None = None, on_progress: StageProgress | None = None
    ) -> VolumeView:
        """What is in a folder, or one file, becomes the volume's next generation; one that is not there is made. `generation`: which one it must be
        at before (0: it must not be there). Safe to repeat. Raises Conflict `volume_busy` while a job writes it, `volume_moved`."""
        return await self._volumes.put(name, source, generation=generation, on_bytes=of_stage(on_progress, name))

    async def get_volume(self, name: str, destination: Path, *, on_progress: StageProgress | None = None) -> VolumeView:
        """Unpacks its newest generation as `destination`, absent or empty before. Raises NotFound `volume_unknown`, `volume_empty`; Conflict
        `destination_exists`."""
        return await self._volumes.get(name, destination, of_stage(on_progress, name))

    async def get_job_volume(
        self, job_id: str, name: str, destination: Path, *, on_progress: StageProgress | None = None
    ) -> JobVolume:
        """The same of what this job stored last, also when it failed and that became no generation."""
        job = await self.job(job_id)
        return await self._volumes.get_left(job, name, destination, of_stage(on_progress, name))

    async def remove_volume(self, name: str) -> VolumeView:
        """Deletes it with what is in it. Raises NotFound `volume_unknown`, Conflict `volume_in_use` while open jobs name it."""
        return await self._volumes.remove(name)


def of_stage(on_progress: StageProgress | None, what: str) -> ByteProgress | None:
    return None if on_progress is None else lambda done, total: on_progress(what, done, total)
