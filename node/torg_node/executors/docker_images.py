"""Images on one engine: found locally, pulled, or made from nothing; always named by what really runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, cast

import aiodocker
import aiohttp

from torg_host.oci_archive import ImageFile, read_image, write_docker_archive
from torg_host.sandbox.images import HOST_PYTHON
from torg_node.executors.docker_engine import Engine, engine_errors
from torg_node.executors.docker_host_python import (
    host_python_image,
    prepared_host_python,
    skeleton_archive,
    sleeper_image,
)
from torg_node.executors.docker_request import RunnableImage
from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound, refused
from torg_node.executors.port import LoadedImage, PreparedImage, ProgressCallback, RegistryAuth
from torg_protocol.registries import HUB, ImageName

_NOT_FOUND = 404
_PIECE_BYTES = 1 << 20
_REFERENCE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,511}")
_REFUSED = ("denied", "unauthorized", "authentication required", "no basic auth credentials", "403 forbidden", "403 (f")


class DockerImages:
    """`pull_timeout_s` bounds the silence of a pull, not its length: a large image may take as long as it needs.

    `local_images`: names or ids of images that exist only here and that jobs may use. All others that no registry knows are
    the owner's private matter: a job could otherwise read whatever the owner once built on this machine.
    """

    def __init__(
        self, engine: Engine, *, pull_timeout_s: float, local_images: frozenset[str], host_python_allowed: bool
    ) -> None:
        self._engine = engine
        self._docker = engine.docker
        self._pull_timeout_s = pull_timeout_s
        self._local_images = local_images
        self._host_python_allowed = host_python_allowed
        self._skeleton_id: str | None = None
        self._loading = asyncio.Lock()

    async def prepare(
        self, image: str, on_progress: ProgressCallback | None, *, auth: RegistryAuth | None = None, anew: bool = False
    ) -> PreparedImage:
        """The reference is the engine's image id, so a tag that moves later changes nothing; host-python keeps its name.

        The digest is the registry's manifest digest where the image came from one, else the image id, which for an image
        without a registry is the digest of its configuration and layers.
        """
        if image == HOST_PYTHON:
            if not self._host_python_allowed:
                raise ImageForbidden("this node does not lend its own Python", field="image", value=image)
            await self.skeleton()
            return prepared_host_python()
        if _REFERENCE.fullmatch(image) is None:
            raise ImageNotFound(
                f'"{image}" is not an image reference', field="image", value=image, hint="registry/name@sha256:..."
            )
        found = None if anew else await self._local(image)
        if found is None:
            await self._pull(image, on_progress, auth)
            found = await self._local(image)
        if found is None:
            raise ImageNotFound(f"the engine pulled {image} but does not know it", field="image", value=image)
        self._refuse_private(image, found)
        names = (*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ()))
        return PreparedImage(found["Id"], _digest(image, found), int(found.get("Size") or 0), names)

    async def load(self, archive: Path, folder: Path, max_bytes: int) -> LoadedImage:
        """Checked here first: an engine believes what an archive says, and unpacks without a bound."""
        image = await asyncio.to_thread(read_image, archive)
        plain = folder / "image.tar"
        await asyncio.to_thread(_rewrite, image, plain, max_bytes)
        with engine_errors("loading the image archive"), plain.open("rb") as file:
            await self._docker.images.import_image(file)
        plain.unlink()
        found = await self._local(image.digest)
        if found is None:
            raise ExecutorError(
                "the engine loaded the image under another id", code="image_id_differs", value=image.digest
            )
        return LoadedImage(image.digest, found["Id"], int(found.get("Size") or 0))

    async def save(self, image_id: str, target: Path) -> None:
        with engine_errors(f"saving image {image_id}"), target.open("wb") as file:
            async with self._docker.images.export_image(image_id) as content:
                async for piece in content.iter_chunked(_PIECE_BYTES):
                    await asyncio.to_thread(file.write, piece)

    async def must_pull(self, image: str) -> bool:
        if image == HOST_PYTHON or _REFERENCE.fullmatch(image) is None:
            return False
        return await self._local(image) is None

    async def forget(self, reference: str, only_if: str | None) -> None:
        found = await self._local(reference)
        if found is None or only_if not in {None, found["Id"]}:
            return  # gone, or its owner has pulled something newer under this name
        with engine_errors(f"removing image {reference}"):
            try:
                await self._docker.images.delete(reference)
            except aiodocker.DockerError as error:
                if error.status != _NOT_FOUND:
                    raise

    async def runnable(self, reference: str) -> RunnableImage:
        """What `prepare` made ready. Raises ImageNotFound when it is gone."""
        if reference == HOST_PYTHON:
            return host_python_image(await self.skeleton())
        found = await self._local(reference)
        if found is None:
            raise ImageNotFound(
                f"{reference} is not on this host (any more)", field="image", value=reference, hint="prepare it first"
            )
        config = found.get("Config") or {}
        return RunnableImage(
            found["Id"],
            volumes=tuple(sorted(config.get("Volumes") or {})),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            cmd=tuple(config.get("Cmd") or ()),
            workdir=config.get("WorkingDir") or "/",
        )

    async def sleeper(self) -> RunnableImage:
        """What the alarm runs in: the empty image and the host's `sleep`."""
        return sleeper_image(await self.skeleton())

    async def skeleton(self) -> str:
        """The id of the empty image, loaded once per engine."""
        async with self._loading:
            if self._skeleton_id is None or await self._local(self._skeleton_id) is None:
                archive = skeleton_archive(self._engine.architecture)
                if await self._local(archive.image_id) is None:
                    with engine_errors("loading the empty image"):
                        await self._docker.images.import_image(io.BytesIO(archive.data))
                self._skeleton_id = archive.image_id
        return self._skeleton_id

    async def _local(self, reference: str) -> dict[str, Any] | None:
        with engine_errors(f"looking for image {reference}"):
            try:
                return await self._docker.images.inspect(reference)
            except aiodocker.DockerError as error:
                if error.status == _NOT_FOUND:
                    return None
                raise

    def _refuse_private(self, image: str, found: Mapping[str, Any]) -> None:
        tags, digests = found.get("RepoTags") or [], found.get("RepoDigests") or []
        if {image, found["Id"], *tags} & self._local_images:
            return
        # Under the owner's own name for it, or by its id, nobody can be asked whether the job may have it.
        if _place(image) not in {_place(name) for name in digests}:
            raise ImageForbidden(
                f"{image} was made on this host and its owner does not offer it to jobs",
                field="image",
                value=image,
                hint="name an image of a registry; the node's owner may list local images that jobs may use",
            )

    async def _pull(self, image: str, on_progress: ProgressCallback | None, auth: RegistryAuth | None) -> None:
        progress = _PullProgress(on_progress)
        try:
            name, shown = _asked(image, auth)
            stream = self._docker.images.pull(name, auth=shown, stream=True, timeout=None)
            async with contextlib.aclosing(cast("AsyncGenerator[dict[str, Any], None]", stream)) as lines:
                while True:  # the engine ends a pull whose asker has gone
                    async with asyncio.timeout(self._pull_timeout_s):
                        line = await anext(lines, None)
                    if line is None:
                        return
                    progress.saw(line)
        except TimeoutError as error:
            raise _not_found(image, f"its registry did not answer within {self._pull_timeout_s:g} s") from error
        except aiodocker.DockerError as error:
            message = error.message if auth is None else auth.without(error.message)
            if any(word in message.lower() for word in _REFUSED):
                raise refused(image, message, shown=auth is not None) from None
            raise _not_found(image, message) from None
        except aiohttp.ClientError as error:
            raise ExecutorError(f"pulling {image}: lost the engine: {error}") from error


def _place(name: str) -> tuple[str, str]:
    parsed = ImageName.parse(name)
    return parsed.registry, parsed.repository


def _asked(image: str, auth: RegistryAuth | None) -> tuple[str, dict[str, str] | None]:
    """As the engine's client takes them: with credentials it wants the registry in the name."""
    if auth is None:
        return image, None
    name, at, digest = image.partition("@")
    if ImageName.parse(image).registry == HUB and not name.startswith(f"{HUB}/"):
        name = f"{HUB}/{name}" if "/" in name else f"{HUB}/library/{name}"
    if auth.token:
        return f"{name}{at}{digest}", {"registrytoken": auth.token}
    return f"{name}{at}{digest}", {"username": auth.username, "password": auth.password}


def _rewrite(image: ImageFile, target: Path, max_bytes: int) -> None:
    with target.open("xb") as file:
        write_docker_archive(image, file, max_bytes)


class _PullProgress:
    """Sums the layers' progress. Totals are known only once every layer has begun, so `total_bytes` may rise."""

    def __init__(self, on_progress: ProgressCallback | None) -> None:
        self._on_progress = on_progress
        self._layers: dict[str, tuple[int, int]] = {}

    def saw(self, line: Mapping[str, Any]) -> None:
        detail = line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and "current" in detail:
            self._layers[str(line.get("id"))] = int(detail["current"]), int(detail.get("total") or 0)
        if self._on_progress is not None:
            done = sum(current for current, _total in self._layers.values())
            total = sum(total for _current, total in self._layers.values())
            self._on_progress(done, total or None, str(line.get("status", "")))


def _not_found(image: str, reason: str) -> ImageNotFound:
    return ImageNotFound(
        f"no image {image}: not on this host, and could not be pulled: {reason}",
        field="image",
        value=image,
        hint="check the name, or use host-python",
    )


def _digest(asked: str, found: Mapping[str, Any]) -> str:
    _name, separator, digest = asked.partition("@")
    if separator:
        return digest
    name = asked.rpartition(":")[0] if ":" in asked.rpartition("/")[2] else asked
    for known in found.get("RepoDigests") or []:
        if known.partition("@")[0] == name:
            return str(known.partition("@")[2])
    return str(found["Id"])
