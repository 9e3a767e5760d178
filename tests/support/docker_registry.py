"""Debian's docker-registry on loopback, open to everybody, to one user, or to who has a token of a token server; and images that are pushed to it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiodocker
import httpx
import pytest

from tests.support.engine import load_image, small_image
from tests.support.ports import own_port
from tests.support.token_server import TokenServer
from torg_node.executors.docker_archive import File

_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{host}"}}
{auth}
"""


@dataclass(frozen=True)
class Login:
    """Who alone may push and pull."""

    username: str = "puller"
    password: str = field(default_factory=lambda: f"pass:word-{secrets.token_hex(16)}")

    def htpasswd(self) -> str:
        crypt = ctypes.CDLL("libcrypt.so.1").crypt
        crypt.restype = ctypes.c_char_p
        hashed = crypt(self.password.encode(), b"$2b$04$" + secrets.token_hex(11).encode())
        return f"{self.username}:{hashed.decode()}\n"


@dataclass(frozen=True)
class Registry:
    host: str  # as images name it: "127.0.0.1:5123"
    log: Path
    login: Login | None = None

    def blobs_asked(self) -> int:
        """How many layers or configurations somebody wanted to have."""
        return sum('"GET /v2/' in line and "/blobs/" in line for line in self.log.read_text().splitlines())

    async def push(self, engine: aiodocker.Docker, socket_path: Path, name: str, *files: File) -> str:
        """Busybox and `files`, gone from the engine afterwards. Its name there: "HOST/NAME:1"."""
        made = await load_image(socket_path, small_image(f"torg-test/{name}:1", files=files))
        await engine.images.tag(made.image_id, f"{self.host}/{name}", tag="1")
        shown = None if self.login is None else {"username": self.login.username, "password": self.login.password}
        async for line in engine.images.push(f"{self.host}/{name}", tag="1", stream=True, auth=shown):
            assert "error" not in line, line
        for reference in (f"{self.host}/{name}:1", f"torg-test/{name}:1"):
            await engine.images.delete(reference)
        return f"{self.host}/{name}:1"


@contextlib.asynccontextmanager
async def running_registry(
    folder: Path, login: Login | None = None, token_server: TokenServer | None = None
) -> AsyncIterator[Registry]:
    """With a `login` closed to all others: it asks for a password itself, or sends everybody to the token server. Skips, with the reason, where
    it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian: docker-registry)")
    host = f"127.0.0.1:{own_port()}"
    folder.mkdir()
    config, log = folder / "registry.yml", folder / "registry.log"
    config.write_text(_CONFIG.format(root=folder / "data", host=host, auth=_auth(folder, login, token_server)))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(program, "serve", str(config), stdout=output, stderr=output)
    try:
        async with asyncio.timeout(120), httpx.AsyncClient(trust_env=False) as client:
            while not await _answers(client, f"http://{host}/v2/"):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield Registry(host, log, login)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _auth(folder: Path, login: Login | None, token_server: TokenServer | None) -> str:
    if login is None:
        return ""
    if token_server is not None:
        return token_server.registry_config(folder)
    (folder / "htpasswd").write_text(login.htpasswd())
    return f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}"


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code in {httpx.codes.OK, httpx.codes.UNAUTHORIZED}
    except httpx.TransportError:
        return False
