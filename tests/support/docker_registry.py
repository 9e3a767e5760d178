"""Debian's docker-registry on loopback, and images that are pushed to it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiodocker
import httpx
import pytest

from tests.support.engine import load_image, small_image
from torg_node.executors.docker_archive import File

_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{host}"}}
"""


@dataclass(frozen=True)
class Registry:
    host: str  # as images name it: "127.0.0.1:5123"
    log: Path

    def blobs_asked(self) -> int:
        """How many layers or configurations somebody wanted to have."""
        return sum('"GET /v2/' in line and "/blobs/" in line for line in self.log.read_text().splitlines())

    async def push(self, engine: aiodocker.Docker, socket_path: Path, name: str, *files: File) -> str:
        """Busybox and `files`, gone from the engine afterwards. Its name there: "HOST/NAME:1"."""
        made = await load_image(socket_path, small_image(f"torg-test/{name}:1", files=files))
        await engine.images.tag(made.image_id, f"{self.host}/{name}", tag="1")
        async for line in engine.images.push(f"{self.host}/{name}", tag="1", stream=True):
            assert "error" not in line, line
        for reference in (f"{self.host}/{name}:1", f"torg-test/{name}:1"):
            await engine.images.delete(reference)
        return f"{self.host}/{name}:1"


@contextlib.asynccontextmanager
async def running_registry(folder: Path) -> AsyncIterator[Registry]:
    """Skips, with the reason, where it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian: docker-registry)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    folder.mkdir()
    config, log = folder / "registry.yml", folder / "registry.log"
    config.write_text(_CONFIG.format(root=folder / "data", host=host))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(program, "serve", str(config), stdout=output, stderr=output)
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
            while not await _answers(client, f"http://{host}/v2/"):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield Registry(host, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
