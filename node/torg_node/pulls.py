"""Images of registries: asked about before they are pulled, watched while they come, and kept account of afterwards.

What the owner has pulled himself is his: it is used, never counted, never removed. What this node pulls is in its cache's books before the
first byte comes, so that an agent that is killed meanwhile leaves nothing uncounted. What was pulled with a job's credentials no other job gets
because it lies here: its registry is asked with that job's own, each time.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Coroutine
from typing import Protocol

from torg_node.cache import Cache
from torg_node.executors.port import Executor, PreparedImage, RegistryAuth
from torg_node.registry import may_have, packed_bytes
from torg_node.settings import Settings
from torg_protocol.errors import TooLarge, TorgError

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # the kernel's words and the registries'
_TELL_EVERY_S = 1.0


class Tell(Protocol):
    def __call__(self, step: str, done_bytes: int = 0, total_bytes: int | None = None) -> Awaitable[None]: ...


async def prepare_image(
    image: str, executor: Executor, cache: Cache, settings: Settings, tell: Tell, auth: RegistryAuth | None = None
) -> PreparedImage:
    """As `Executor.prepare`. `auth`: of this job, for this image's registry. Raises also TooLarge `image_too_large`, before the pull where the
    registry says how large the image is, ImageForbidden `registry_private`, and ExecutorUnavailable `registry_unavailable`."""
    is_here = not await executor.must_pull(image)
    if is_here:
        prepared = await executor.prepare(image)
        if await _is_open_to(image, prepared, cache, settings, auth):
            await asyncio.to_thread(cache.use_pulled, image)
            return prepared
    most, is_private = settings.max_image_bytes, auth is not None
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    packed = await packed_bytes(image, architecture, settings.private_registries, auth)
    if packed is not None:
        _check_size(image, packed, most, "packed, as its registry says")
    await asyncio.to_thread(cache.expect_pulled, image, private=is_private)
    try:
        pulling = executor.prepare(image, watch := _Watch(image, most, packed), auth=auth, anew=is_here)
        prepared = await _pulled(image, pulling, watch, tell)
    except (TorgError, OSError):
        await asyncio.to_thread(cache.drop_expected, image)
        raise
    await asyncio.to_thread(cache.keep_pulled, image, prepared, private=is_private)
    if prepared.size_bytes > most:
        await executor.forget_image(image, prepared.reference)
        await asyncio.to_thread(cache.drop_pulled, image)
    _check_size(image, prepared.size_bytes, most, "unpacked")
    return prepared


async def _is_open_to(
    image: str, prepared: PreparedImage, cache: Cache, settings: Settings, auth: RegistryAuth | None
) -> bool:
    """What was pulled with one job's credentials another may use when the registry gives it to that one too. False: its registry has it no more,
    under this name there may be a newer one. Raises RegistryRefused, ExecutorUnavailable."""
    if not await asyncio.to_thread(cache.is_private, prepared):
        return True
    return await may_have(image, prepared.digest, settings.private_registries, auth)


def _check_size(image: str, size_bytes: int, most: int, how: str) -> None:
    if size_bytes > most:
        raise TooLarge(
            f"{image} has {size_bytes} bytes {how}; this node takes images of up to {most}",
            code="image_too_large",
            field="image",
            value=image,
            hint="make it smaller; the node's owner may raise max_image_bytes",
        )


class _Watch:
    """Holds a pull to its bound where the registry said nothing before, or not the truth."""

    def __init__(self, image: str, most: int, packed: int | None) -> None:
        self._image, self._most = image, most
        self.done_bytes, self.total_bytes = 0, packed

    def __call__(self, done_bytes: int, total_bytes: int | None, message: str) -> None:  # noqa: ARG002  the port's
        """Raises TooLarge, which ends the pull."""
        self.done_bytes = max(self.done_bytes, done_bytes)
        if total_bytes is not None:
            _check_size(self._image, total_bytes, self._most, "packed, as its layers say")
            self.total_bytes = max(self.total_bytes or 0, total_bytes)


async def _pulled(
    image: str, preparing: Coroutine[None, None, PreparedImage], watch: _Watch, tell: Tell
) -> PreparedImage:
    """Says how far it is, now and then."""
    pulling = asyncio.ensure_future(preparing)
    try:
        while not (await asyncio.wait({pulling}, timeout=_TELL_EVERY_S))[0]:
            await tell(f"image {image}", watch.done_bytes, watch.total_bytes)
        return await pulling
    finally:
        pulling.cancel()
