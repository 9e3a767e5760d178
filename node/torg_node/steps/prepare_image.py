"""Prepare the image: make it runnable here, and learn the digest of what will really run."""

from __future__ import annotations

from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound
from torg_node.lease import Lease, LeaseEnded
from torg_protocol.states import EndReason


class PrepareImage:
    name = "prepare the image"

    async def do(self, lease: Lease) -> None:
        await lease.preparing(f"image {lease.spec.image}")
        try:
            lease.image = await lease.node.executor.prepare(lease.spec.image)
        except ImageNotFound as error:
            raise LeaseEnded(EndReason.IMAGE_NOT_FOUND, str(error)) from error
        except (ImageForbidden, ExecutorError) as error:
            raise LeaseEnded(EndReason.START_FAILED, str(error)) from error

    async def undo(self, lease: Lease) -> None:
        """Images stay: the next lease may want the same."""
