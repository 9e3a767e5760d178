"""Prepare the images: make them runnable here, and learn the digests of what will really run."""

from __future__ import annotations

import asyncio
import shutil

from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound, RegistryRefused
from torg_node.executors.port import PreparedImage
from torg_node.lease import Lease, LeaseEnded
from torg_node.pulls import prepare_image
from torg_node.steps.make_workspace import fetch
from torg_protocol.errors import Invalid, TooLarge, TorgError
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef
from torg_protocol.registries import ImageName
from torg_protocol.states import EndReason
from torg_protocol.tasks import BLOB_IMAGE


class PrepareImage:
    name = "prepare the image"

    async def do(self, lease: Lease) -> None:
        for image in lease.spec.images:
            await lease.preparing(f"image {image}")
            lease.images[image] = await _prepared(lease, image)

    async def undo(self, lease: Lease) -> None:
        """Images stay: the next lease may want the same."""


async def _prepared(lease: Lease, image: str) -> PreparedImage:
    try:
        if image.startswith(BLOB_IMAGE):
            return await _of_archive(lease, Digest(image.removeprefix(BLOB_IMAGE)))
        node = lease.node
        auth = lease.registry_auth.get(ImageName.parse(image).registry)
        return await prepare_image(image, node.executor, node.cache, node.settings, lease.preparing, auth)
    except ImageNotFound as error:
        raise LeaseEnded(EndReason.IMAGE_NOT_FOUND, str(error)) from error
    except RegistryRefused as error:
        raise LeaseEnded(EndReason.INPUT_INVALID, str(error)) from None
    except (ImageForbidden, ExecutorError, TooLarge) as error:
        raise LeaseEnded(EndReason.START_FAILED, str(error)) from error
    except Invalid as error:
        raise LeaseEnded(EndReason.INPUT_INVALID, str(error)) from error


async def _of_archive(lease: Lease, digest: Digest) -> PreparedImage:
    """An image that the client brought along: once fetched and loaded, it stays for the next job that wants it."""
    cache, executor = lease.node.cache, lease.node.executor
    async with cache.loading:
        if (folder := await asyncio.to_thread(cache.image, digest)) is not None:
            try:
                return await executor.prepare_loaded(folder, cache.loaded(folder))
            except ImageNotFound:  # somebody cleaned up in the engine
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        lease.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        archive, most = lease.folder / "image.tar", lease.node.settings.max_image_bytes
        staging = await asyncio.to_thread(cache.new_image, digest)
        try:
            await fetch(lease, BlobRef(digest=digest, size_bytes=0), archive, keep=False, max_bytes=most)
            loaded = await executor.load_archive(archive, staging, most)
            folder = await asyncio.to_thread(cache.keep_image, digest, staging, loaded)
        except (TorgError, LeaseEnded, OSError):
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
            raise
        finally:
            archive.unlink(missing_ok=True)
        return await executor.prepare_loaded(folder, loaded)
