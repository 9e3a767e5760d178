"""A node's engine and books, and the registry that it pulls from."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiodocker

from tests.support.docker_registry import Registry
from tests.support.engine import docker_executor, engine_client
from tests.support.node_settings import settings_in
from torg_node.cache import Cache
from torg_node.executors.docker import DockerExecutor
from torg_node.settings import Settings

MIB = 1 << 20


@dataclass
class PullingHost:
    executor: DockerExecutor
    engine: aiodocker.Docker
    socket: Path
    registry: Registry
    cache: Cache
    settings: Settings


H = TypeVar("H", bound=PullingHost)


@contextlib.asynccontextmanager
async def pulling_host(kind: type[H], engine_socket: Path, folder: Path, registry: Registry) -> AsyncIterator[H]:
    """Afterwards nothing that came from this registry is on the engine."""
    async with (
        docker_executor(engine_socket, folder / "executor") as executor,
        engine_client(engine_socket) as engine,
    ):
        settings = settings_in(folder, max_image_bytes=64 * MIB, private_registries=(registry.host,))
        yield kind(executor, engine, engine_socket, registry, Cache(folder / "cache", 0), settings)
        for image in await engine.images.list():
            for name in [name for name in image["RepoTags"] or [] if name.startswith(registry.host)]:
                with contextlib.suppress(aiodocker.DockerError):
                    await engine.images.delete(name, force=True)
