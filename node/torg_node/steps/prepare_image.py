"""Prepare the images: make them runnable here, and learn the digests of what will really run."""

from __future__ import annotations

from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound
from torg_node.executors.port import PreparedImage
from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason


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
        return await lease.node.executor.prepare(image)
    except ImageNotFound as error:
        raise LeaseEnded(EndReason.IMAGE_NOT_FOUND, str(error)) from error
    except (ImageForbidden, ExecutorError) as error:
        raise LeaseEnded(EndReason.START_FAILED, str(error)) from error
