"""A root of a user namespace beside a container engine: its images, its other containers, and what is left of both."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engine import docker_executor, engine_socket, launch, load_image, small_image
from tests.support.job_logs import text_of
from torg_host.disk import QuotaDisk
from torg_host.sandbox.own_root import FIRST_HOST_ID
from torg_node.egress.process import EgressOrder, start_proxy
from torg_node.executors.docker_archive import File
from torg_node.executors.errors import LaunchRefused
from torg_node.executors.port import PROXY_PORT, Capabilities, ExitReason, LaunchSpec
from torg_node.executors.probes import OWN_ROOT_PROBE, with_own_root
from torg_node.executors.rooted import RootedExecutor

__all__ = ["engine_socket"]
pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.sandbox]
MIB = 1 << 20


@pytest.fixture
async def rooted(engine_socket: Path, tmp_path: Path) -> AsyncIterator[RootedExecutor]:
    image = small_image(files=[File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")])
    await load_image(engine_socket, image)
    async with docker_executor(engine_socket, tmp_path / "docker", local_images=[image.tag]) as engine:
        executor = RootedExecutor(engine, tmp_path / "rooted")
        yield executor
        await executor.reap(frozenset())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    quota = QuotaDisk(tmp_path / "lease", 32 * MIB)
    try:
        yield quota.open().files
    finally:
        quota.remove()


async def a_launch(rooted: RootedExecutor, disk: Path, name: str, script: str) -> LaunchSpec:
    image = await rooted.prepare("torg-test/busybox:1")
    spec = launch(name, ["sh", "-c", script], image=image.reference, workdir="/")
    return replace(spec, own_root=disk / "roots" / "job")


async def said(rooted: RootedExecutor, spec: LaunchSpec) -> str:
    handle = await rooted.start(spec)
    async with asyncio.timeout(150):
        chunks = [chunk async for chunk in rooted.logs(handle)]
        ended = await rooted.wait(handle)
    assert ended.reason is ExitReason.EXITED
    await rooted.remove(handle)
    return text_of(chunks, "stdout") + text_of(chunks, "stderr")


async def test_root_runs_in_the_sandbox_on_the_engines_image_and_others_in_the_engine(
    rooted: RootedExecutor, disk: Path, tmp_path: Path
) -> None:
    script = "id -u; echo x > /etc/new && cat /etc/new"
    spec = await a_launch(rooted, disk, "root", script)

    assert await said(rooted, spec) == "0\nx\n"
    assert (disk / "roots" / "job" / "upper" / "etc" / "new").stat().st_uid == FIRST_HOST_ID
    as_nobody = await said(rooted, replace(spec, name="nobody", own_root=None))
    assert as_nobody.startswith("65534\n")
    assert "Read-only file system" in as_nobody
    (unpacked,) = (tmp_path / "rooted" / "images").iterdir()
    assert (unpacked / "rootfs" / "bin").is_dir()
    assert not (unpacked / "image.tar").exists()

    with pytest.raises(LaunchRefused) as refused:
        await rooted.start(replace(spec, gpu_uuids=("GPU-1",)))
    assert refused.value.field == "gpu_uuids"


async def test_a_restarted_agent_finds_both_kinds_and_unused_images_go(
    rooted: RootedExecutor, disk: Path, tmp_path: Path, engine_socket: Path
) -> None:
    spec = await a_launch(rooted, disk, "root", "sleep 600")
    handles = [await rooted.start(spec), await rooted.start(replace(spec, name="nobody", own_root=None))]
    (unpacked,) = (tmp_path / "rooted" / "images").iterdir()
    os.utime(unpacked / "ready", (0, 0))
    async with docker_executor(engine_socket, tmp_path / "docker", local_images=["torg-test/busybox:1"]) as engine:
        again = RootedExecutor(engine, tmp_path / "rooted")
        assert await again.reap(frozenset({"root", "nobody"})) == ()
        assert [await again.reattach(handle) for handle in handles] == [True, True]
        assert unpacked.is_dir(), "a container runs on it"
        assert await again.reap(frozenset()) == ("nobody", "root")
        await again.reap(frozenset())
        assert not unpacked.exists()


async def test_with_an_image_of_the_engine_goes_what_was_unpacked_of_it(
    rooted: RootedExecutor, disk: Path, tmp_path: Path
) -> None:
    spec = await a_launch(rooted, disk, "root", "true")
    await said(rooted, spec)
    assert len(list((tmp_path / "rooted" / "images").iterdir())) == 1
    await rooted.forget_image(
        "torg-test/busybox:1", spec.image
    )  # as the books have it: its name, and what that stood for
    assert list((tmp_path / "rooted" / "images").iterdir()) == []


async def test_the_probe_holds(rooted: RootedExecutor) -> None:
    found = await with_own_root(rooted, Capabilities("docker", "", "container", (), ()))
    assert found.not_offered == ()
    assert found.verified == (OWN_ROOT_PROBE,)


async def test_its_way_out_is_its_proxy(rooted: RootedExecutor, disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "egress"
    folder.mkdir()
    with start_proxy(EgressOrder(allow=None, bytes_per_s=0), folder) as proxy:
        ask = (
            f"import socket; s = socket.create_connection(('127.0.0.1', {PROXY_PORT}), 10);"
            "s.sendall(b'CONNECT 127.0.0.1:22 HTTP/1.1\\r\\nHost: 127.0.0.1:22\\r\\n\\r\\n'); print(s.recv(100).decode())"
        )
        spec = launch("root", ["python", "-c", ask], own_root=disk / "roots" / "job", workdir="/")
        text = await said(rooted, replace(spec, proxy=proxy))
    assert text.startswith("HTTP/1.1 403"), text


async def test_an_image_that_cannot_be_unpacked_leaves_nothing(
    rooted: RootedExecutor, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await a_launch(rooted, disk, "root", "true")
    monkeypatch.setattr(shutil, "copyfileobj", _full)
    with pytest.raises(Exception, match="the image could not be unpacked"):
        await rooted.start(spec)
    assert list((tmp_path / "rooted" / "images").iterdir()) == []


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
