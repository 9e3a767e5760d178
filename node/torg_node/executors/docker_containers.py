"""One node's containers on an engine: the few calls that the executor makes, each blind to other nodes' containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp

from torg_node.executors.docker_engine import Engine, engine_errors
from torg_node.executors.docker_request import LABEL_LEASE, LABEL_NODE
from torg_node.executors.errors import AlreadyRunning, ExecutorError

_NOT_FOUND, _CONFLICT = 404, 409
_POLL_S, _GONE_ATTEMPTS = 0.05, 600
_RECONNECT_S = 0.5


@dataclass(frozen=True, slots=True)
class Listed:
    ref: str
    labels: Mapping[str, str]


class NodeContainers:
    """Every method but `anybodys` sees only containers that carry this node's label."""

    def __init__(self, engine: Engine, node_label: str) -> None:
        self._docker = engine.docker
        self._node_label = node_label

    async def inspect(self, ref: str) -> dict[str, Any] | None:
        """By id or name; None when there is none or it is not ours."""
        container = await self.anybodys(ref)
        return container if container and self.is_ours(container) else None

    async def anybodys(self, ref: str) -> dict[str, Any] | None:
        with engine_errors(f"looking for container {ref}"):
            try:
                return await self._docker.containers.container(ref).show()
            except aiodocker.DockerError as error:
                if error.status == _NOT_FOUND:
                    return None
                raise

    def is_ours(self, container: Mapping[str, Any]) -> bool:
        return bool((container["Config"].get("Labels") or {}).get(LABEL_NODE) == self._node_label)

    async def list(self, *, lease: str | None = None) -> list[Listed]:
        """Running or not."""
        labels = [f"{LABEL_NODE}={self._node_label}", *([f"{LABEL_LEASE}={lease}"] if lease is not None else [])]
        with engine_errors("listing containers"):
            found = await self._docker.containers.list(all=True, filters={"label": labels})
        return [Listed(container.id, dict(container["Labels"])) for container in found]

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """The new container's id. Raises AlreadyRunning when the name is taken."""
        with engine_errors(f"creating container {name}"):
            try:
                return (await self._docker.containers.create(body, name=name)).id
            except aiodocker.DockerError as error:
                if error.status == _CONFLICT:
                    raise AlreadyRunning(f"the name {name} is taken", field="name", value=name) from error
                raise

    async def start(self, ref: str) -> None:
        with engine_errors("starting the container"):
            await self._docker.containers.container(ref).start()

    async def wait(self, ref: str) -> None:
        """Returns when the container is not running or is no more. Rides over restarts of the engine."""
        while True:
            try:
                await self._docker.containers.container(ref).wait()
                return
            except aiodocker.DockerError as error:
                if error.status == _NOT_FOUND:
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass  # the connection broke: the container may well run on
            await asyncio.sleep(_RECONNECT_S)

    async def signal(self, ref: str, name: str) -> None:
        """No-op when the container is not running."""
        with engine_errors(f"sending {name} to the container"):
            try:
                await self._docker.containers.container(ref).kill(signal=name)
            except aiodocker.DockerError as error:
                if error.status not in {_NOT_FOUND, _CONFLICT}:
                    raise

    async def delete(self, ref: str) -> None:
        """Kills and removes, with the volumes that only it had. Returns when it is gone; no-op when it already is."""
        with engine_errors("removing the container"):
            try:
                await self._docker.containers.container(ref).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status not in {_NOT_FOUND, _CONFLICT}:  # conflict: somebody else is removing it right now
                    raise
        for _attempt in range(_GONE_ATTEMPTS):
            if await self.inspect(ref) is None:
                return
            await asyncio.sleep(_POLL_S)
        raise ExecutorError(f"the engine does not remove container {ref}")

    async def raw_logs(self, ref: str, *, since: str, follow: bool) -> AsyncIterator[bytes]:
        """The engine's multiplexed stream as it comes; ends with the container. The library's own reader decodes to text
        and forgets which stream a line came from. Raises aiohttp.ClientError when the connection breaks."""
        url = f"{self._docker.docker_host}/{self._docker.api_version}/containers/{ref}/logs"
        parameters = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0", "since": since}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._docker.session.get(url, params=parameters, timeout=timeout) as response:
            if response.status == _NOT_FOUND:
                return
            response.raise_for_status()
            async for data in response.content.iter_any():
                yield data
