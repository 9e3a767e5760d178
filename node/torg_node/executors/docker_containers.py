"""One node's containers on an engine: the few calls that the executor makes, each blind to other nodes' containers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import aiodocker
import aiohttp

from torg_node.executors.docker_engine import Engine, engine_errors
from torg_node.executors.docker_request import LABEL_NAME, LABEL_NODE
from torg_node.executors.errors import AlreadyRunning, ExecutorError, ExecutorUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
ENGINE_AWAY_S = 600.0  # an engine that restarts, or is being updated, is waited for this long
_POLL_S, _GONE_ATTEMPTS, _ASKED_AGAIN_AFTER = 0.05, 600, 40
_RECONNECT_S = 0.5
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


@dataclass(frozen=True, slots=True)
class Listed:
    ref: str
    name: str
    labels: Mapping[str, str]


class NodeContainers:
    """Every method but `anybodys` sees only containers that carry this node's label.

    `inspect`, `signal` and `wait` ride over restarts of the engine, since the container may well run on. What else is asked fails at once
    with ExecutorUnavailable: a container that is only being made can be made on another node."""

    def __init__(self, engine: Engine, node_label: str, *, away_s: float = ENGINE_AWAY_S) -> None:
        self._docker = engine.docker
        self._node_label = node_label
        self._away_s = away_s

    async def inspect(self, ref: str) -> dict[str, Any] | None:
        """By id or name; None when there is none or it is not ours."""
        container = await self.riding_over(lambda: self.anybodys(ref))
        return container if container and self.is_ours(container) else None

    async def riding_over(self, call: Callable[[], Awaitable[T]]) -> T:
        """Calls again until the engine answers. Raises ExecutorUnavailable when the engine stays away for longer than it may."""
        away_since: float | None = None
        while True:
            try:
                answer = await call()
            except ExecutorUnavailable as error:
                if away_since is None:
                    away_since = time.monotonic()
                    log.warning("%s: waiting for it", error)
                if time.monotonic() - away_since > self._away_s:
                    raise
            else:
                return answer
            await asyncio.sleep(_RECONNECT_S)

    async def anybodys(self, ref: str) -> dict[str, Any] | None:
        with engine_errors(f"looking for container {ref}"):
            try:
                return await self._docker.containers.container(ref).show()
            except aiodocker.DockerError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return None
                raise

    def is_ours(self, container: Mapping[str, Any]) -> bool:
        return bool((container["Config"].get("Labels") or {}).get(LABEL_NODE) == self._node_label)

    async def find(self, *, name: str | None = None) -> list[Listed]:
        """Running or not."""
        labels = [f"{LABEL_NODE}={self._node_label}", *([f"{LABEL_NAME}={name}"] if name is not None else [])]
        with engine_errors("listing containers"):
            found = await self._docker.containers.list(all=True, filters={"label": labels})
        return [Listed(item.id, item["Names"][0].lstrip("/"), dict(item["Labels"])) for item in found]

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """The new container's id. Raises AlreadyRunning when the name is taken."""
        with engine_errors(f"creating container {name}"):
            try:
                return (await self._docker.containers.create(body, name=name)).id
            except aiodocker.DockerError as error:
                if error.status == HTTPStatus.CONFLICT:
                    raise AlreadyRunning(f"the name {name} is taken", field="name", value=name) from error
                raise

    async def start(self, ref: str) -> None:
        with engine_errors("starting the container"):
            await self._docker.containers.container(ref).start()

    async def rename(self, ref: str, name: str) -> None:
        with engine_errors(f"naming container {name}"):
            await self._docker.containers.container(ref).rename(name)

    async def wait(self, ref: str) -> None:
        """Returns when the container is not running or is no more. Rides over restarts of the engine."""
        while True:
            try:
                await self._docker.containers.container(ref).wait()
                return
            except aiodocker.DockerError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass  # the connection broke: the container may well run on
            await asyncio.sleep(_RECONNECT_S)

    async def signal(self, ref: str, name: str) -> None:
        """No-op when the container is not running."""
        await self.riding_over(lambda: self._signal(ref, name))

    async def _signal(self, ref: str, name: str) -> None:
        with engine_errors(f"sending {name} to the container"):
            try:
                await self._docker.containers.container(ref).kill(signal=name)
            except aiodocker.DockerError as error:
                if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                    raise

    async def delete(self, ref: str) -> None:
        """Kills and removes, with the volumes that only it had. Returns when it is gone; no-op when it already is."""
        for attempt in range(_GONE_ATTEMPTS):
            if attempt % _ASKED_AGAIN_AFTER == 0:  # whose removal was in the way may have been given up
                await self._ask_to_remove(ref)
            if (found := await self.anybodys(ref)) is None or not self.is_ours(found):
                return
            await asyncio.sleep(_POLL_S)
        raise ExecutorError(f"the engine does not remove container {ref}")

    async def _ask_to_remove(self, ref: str) -> None:
        with engine_errors("removing the container"):
            try:
                await self._docker.containers.container(ref).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status not in {
                    HTTPStatus.NOT_FOUND,
                    HTTPStatus.CONFLICT,
                }:  # conflict: somebody else is removing it right now
                    raise

    async def signals_sent(self, ref: str, *, since_ms: int, until_ms: int) -> list[str]:
        """Numbers of the signals that were sent to the container through the engine, as far back as it remembers."""
        filters = json.dumps({"container": [ref], "event": ["kill"]})
        parameters = {"since": f"{since_ms / 1000:.3f}", "until": f"{until_ms / 1000:.3f}", "filters": filters}
        with engine_errors("asking for the container's events"):
            async with self._docker.session.get(self._url("events"), params=parameters) as response:
                lines = (await response.text()).splitlines()
        return [str(json.loads(line)["Actor"]["Attributes"].get("signal")) for line in lines if line]

    async def attach(self, ref: str) -> aiohttp.ClientResponse:
        """The output from now on, as it is written; the writer waits for a slow reader. Ends with the container, or the engine.

        To be closed by the caller. Raises ExecutorError.
        """
        parameters = {"stream": "1", "stdout": "1", "stderr": "1"}
        with engine_errors("attaching to the container"):
            response = await self._docker.session.post(
                self._url(f"containers/{ref}/attach"), params=parameters, timeout=_NO_TIMEOUT
            )
            if response.status != HTTPStatus.OK:
                text = await response.text()
                raise aiodocker.DockerError(response.status, text)
        return response

    async def raw_logs(self, ref: str, *, since: str, follow: bool) -> AsyncIterator[bytes]:
        """The engine's kept log with times, as a multiplexed stream; a followed one ends with the container. The library's own
        reader decodes to text and forgets which stream a line came from. Raises aiohttp.ClientError when the connection breaks."""
        parameters = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0", "since": since}
        url = self._url(f"containers/{ref}/logs")
        async with self._docker.session.get(url, params=parameters, timeout=_NO_TIMEOUT) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                return
            response.raise_for_status()
            async for data in response.content.iter_any():
                yield data

    def _url(self, path: str) -> str:
        return f"{self._docker.docker_host}/{self._docker.api_version}/{path}"
