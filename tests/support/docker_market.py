"""A market whose node runs containers of a real engine, on images of well-known names that were made from Debian's packages."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from scripts.market_processes import call, script
from tests.support.engine import DOCKER_FOLDER, load_image, load_script
from tests.support.small_market import SmallMarket
from torg.client import AsyncClient
from torg.tunnel import open_tunnel
from torg_protocol.api import JobView
from torg_protocol.errors import TorgError
from torg_protocol.ports import Port

debian_image = load_script(DOCKER_FOLDER / "debian_image.py")


@dataclass
class DockerMarket(SmallMarket):
    engine: Path = Path("/nowhere")
    images: Sequence[str] = ()  # that jobs may use, beside those of registries
    private_registries: Sequence[str] = ()
    gpu_slices: int = 1

    async def start_node(self, env: Mapping[str, str] | None = None) -> None:
        data = self.folder / "node"
        init = ["init", "--data", str(data), "--marketplace", self.url, "--price", "1.00"]
        init += ["--executor", "docker", "--engine-socket", str(self.engine), "--max-unpaid", self.max_unpaid]
        await call([script("torg-node"), *init, "--yes", "--json"])
        config = (data / "config.toml").read_text()
        listed = ", ".join(f'"{name}:latest"' for name in self.images)
        config = config.replace("gpu_slices = 1", f"gpu_slices = {self.gpu_slices}")
        config = re.sub(r"(?m)^private_registries = .*$", f"private_registries = {[*self.private_registries]}", config)
        (data / "config.toml").write_text(re.sub(r"(?m)^local_images = .*$", f"local_images = [{listed}]", config))
        await super().start_node(env)


async def ready(client: AsyncClient, job_id: str, within_s: float = 150.0) -> JobView:
    """Once the node has found that every declared port passes its health check."""
    async with asyncio.timeout(within_s):
        while True:
            job = await client.job(job_id)
            ports = job.leases[-1].ports if job.leases else ()
            if ports and all(port.ready for port in ports):
                return job
            await asyncio.sleep(0.2)


async def answer(client: AsyncClient, job_id: str, port: Port, within_s: float = 150.0, task: str | None = None) -> str:
    """The head of what a job's port answers to its health check's GET, asked through the gateway until something answers."""
    request = f"GET {port.health.http or '/'} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    async with asyncio.timeout(within_s):
        while True:
            try:
                async with open_tunnel(client, job_id, task) as tunnel:
                    reader, writer = await tunnel.connect(port.port)
                    writer.write(request)
                    head: bytes = await reader.readuntil(b"\r\n\r\n")
                    return head.decode()
            except (TorgError, asyncssh.Error, EOFError):  # not started yet, or does not listen yet
                await asyncio.sleep(0.2)


async def load_debian_images(socket: Path, names: Sequence[str]) -> None:
    """As `NAME:latest`. Skips, with the reason, where Debian's archive cannot be reached."""
    for name in names:
        try:
            image = await asyncio.to_thread(debian_image.debian_image, name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"Debian's packages cannot be had here: {error}")
        await load_image(socket, image)
