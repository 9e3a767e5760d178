"""Software that wants to be root, as people run it: images of Debian's packages, with what their official images do at the start."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.engine import DOCKER_FOLDER, load_script
from tests.support.executors import LIMITS
from tests.support.job_logs import read_logs, text_of
from torg_host.disk import QuotaDisk
from torg_host.sandbox.own_root import FIRST_HOST_ID
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import ExitReason, Handle, LaunchSpec, Mount
from torg_node.executors.sandbox import SandboxExecutor

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.slow]
debian_image = load_script(DOCKER_FOLDER / "debian_image.py")


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[SandboxExecutor]:
    executor = SandboxExecutor(tmp_path / "sandbox")
    yield executor
    await executor.reap(frozenset())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    quota = QuotaDisk(tmp_path / "lease", 128 << 20)
    try:
        yield quota.open().files
    finally:
        quota.remove()


async def start(executor: SandboxExecutor, disk: Path, name: str, *args: str, mounts: tuple[Mount, ...] = ()) -> Handle:
    archive, folder = disk.parent / "image.tar", disk.parent / "image"
    try:
        image = await asyncio.to_thread(debian_image.debian_image, name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Debian's packages cannot be had here: {error}")
    archive.write_bytes(gzip.decompress(image.data))
    folder.mkdir()
    loaded = await executor.load_archive(archive, folder, 1 << 30)
    reference = (await executor.prepare_loaded(folder, loaded)).reference
    root = disk / "roots" / "job"
    launch = LaunchSpec("job", reference, (), {}, "", mounts, LIMITS, 60_000, args=args, own_root=root)
    return await executor.start(launch)


async def answer(executor: SandboxExecutor, handle: Handle, port: int, request: bytes) -> bytes:
    """Of what listens there, as soon as it does."""

    async with asyncio.timeout(150):
        while True:
            try:
                socket = await executor.dial(handle, port)
                break
            except ExecutorError:
                await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection(sock=socket)
        writer.write(request)
        line = await reader.readline()
        writer.close()
    return line


async def test_nginx_binds_port_80_as_root_and_works_as_its_own_user(executor: SandboxExecutor, disk: Path) -> None:
    handle = await start(executor, disk, "nginx")
    assert await answer(executor, handle, 80, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK\r\n"
    await executor.stop(handle, 5_000)
    assert "GET / HTTP/1.0" in text_of(await read_logs(executor, handle))  # /dev/stdout, opened by its name
    assert (disk / "roots/job/upper/var/lib/nginx/body").stat().st_uid == FIRST_HOST_ID + 33


async def test_redis_gives_itself_its_data_and_is_root_no_more(executor: SandboxExecutor, disk: Path) -> None:
    data = disk / "data"
    data.mkdir()
    handle = await start(executor, disk, "redis", mounts=(Mount(data, "/data", writable=True),))
    assert await answer(executor, handle, 6379, b"SET a 1\r\n") == b"+OK\r\n"
    assert await answer(executor, handle, 6379, b"SAVE\r\n") == b"+OK\r\n"
    assert (data / "dump.rdb").stat().st_uid == FIRST_HOST_ID + 999
    await executor.stop(handle, 5_000)
    assert (await executor.wait(handle)).reason is ExitReason.STOPPED


async def test_a_package_is_installed_at_the_start(executor: SandboxExecutor, disk: Path) -> None:
    try:
        (package,) = await asyncio.to_thread(debian_image.fetched, ["hello"])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Debian's packages cannot be had here: {error}")
    (disk / "hello.deb").write_bytes(package)
    install = "dpkg --force-depends -i /hello.deb >/dev/null && hello"
    handle = await start(
        executor, disk, "dpkg", "bash", "-c", install, mounts=(Mount(disk / "hello.deb", "/hello.deb"),)
    )
    ended, chunks = await executor.wait(handle), await read_logs(executor, handle)
    said = text_of(chunks), text_of(chunks, "stderr")
    assert (ended.reason, ended.code) == (ExitReason.EXITED, 0), said
    assert "Hello, world!" in said[0]
