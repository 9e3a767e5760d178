"""Which images run, under which digest, and how a missing, forbidden or odd one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.engine import (
    docker_executor,
    engine_client,
    launch,
    limits,
    load_image,
    run_to_end,
    small_image,
)
from torg_host.sandbox.images import host_python_digest
from torg_node.executors.errors import ImageForbidden, ImageNotFound, LaunchRefused

pytestmark = [pytest.mark.engine, pytest.mark.root]


async def test_an_image_made_from_nothing_has_the_id_that_was_computed_and_runs(
    engine_socket: Path, tmp_path: Path
) -> None:
    image = await load_image(engine_socket, small_image())
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag]) as executor:
        prepared = await executor.prepare(image.tag)
        outcome = await run_to_end(executor, launch("small", ["id", "-u"], image=prepared.reference))

    assert (prepared.reference, prepared.digest) == (image.image_id, image.image_id)
    assert outcome.stdout == "65534\n"


async def test_an_image_runs_by_its_own_entrypoint_and_in_its_own_directory(
    engine_socket: Path, tmp_path: Path
) -> None:
    image = await load_image(
        engine_socket, small_image("torg-test/own:1", entrypoint=("echo", "own"), cmd=("default",), workdir="/etc")
    )
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag]) as executor:
        reference = (await executor.prepare(image.tag)).reference
        own = await run_to_end(executor, launch("own", [], image=reference, workdir=""))
        given = await run_to_end(executor, launch("given", [], image=reference, args=("given",)))
        where = await run_to_end(
            executor, launch("where", ["sh"], image=reference, args=("-c", "echo $PWD"), workdir="")
        )

    assert [outcome.stdout for outcome in (own, given, where)] == ["own default\n", "own given\n", "/etc\n"]


async def test_an_image_without_a_command_needs_one_of_the_job(engine_socket: Path, tmp_path: Path) -> None:
    image = await load_image(engine_socket, small_image())
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag]) as executor:
        reference = (await executor.prepare(image.tag)).reference
        with pytest.raises(LaunchRefused, match="no command of its own") as caught:
            await executor.start(launch("none", [], image=reference))

    assert caught.value.code == "command_not_found"


async def test_the_reference_still_means_the_same_after_the_tag_moved(engine_socket: Path, tmp_path: Path) -> None:
    first = await load_image(engine_socket, small_image("torg-test/moving:1", labels={"version": "1"}))
    async with docker_executor(engine_socket, tmp_path, local_images=[first.tag]) as executor:
        prepared = await executor.prepare(first.tag)
        second = await load_image(engine_socket, small_image("torg-test/moving:1", labels={"version": "2"}))

        assert (await executor.prepare(first.tag)).reference == second.image_id
        handle = await executor.start(launch("moving", ["true"], image=prepared.reference))
        async with engine_client(engine_socket) as client:
            assert (await client.containers.container(handle.ref).show())["Image"] == first.image_id


async def test_an_unlisted_local_image_is_the_owners_private_matter(engine_socket: Path, tmp_path: Path) -> None:
    image = await load_image(engine_socket, small_image())
    async with docker_executor(engine_socket, tmp_path) as executor:
        for name in (image.tag, image.image_id, image.image_id.removeprefix("sha256:")[:12]):
            with pytest.raises(ImageForbidden) as caught:
                await executor.prepare(name)
            assert (caught.value.code, caught.value.value) == ("image_forbidden", name)


async def test_an_image_neither_here_nor_to_be_pulled_says_why(engine_socket: Path, tmp_path: Path) -> None:
    missing = "localhost:9/nobody/nothing@sha256:" + "0" * 64
    async with docker_executor(engine_socket, tmp_path, pull_timeout_s=20.0) as executor:
        with pytest.raises(ImageNotFound, match="connection refused") as caught:
            await executor.prepare(missing)

    assert (caught.value.code, caught.value.field, caught.value.value) == ("image_not_found", "image", missing)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "name with blanks", "-v"])
async def test_what_is_no_reference_never_reaches_the_engine(engine_socket: Path, tmp_path: Path, name: str) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        with pytest.raises(ImageNotFound, match=re.escape(f'"{name}" is not an image reference')):
            await executor.prepare(name)


async def test_starting_an_image_that_is_gone_is_refused(engine_socket: Path, tmp_path: Path) -> None:
    async with docker_executor(engine_socket, tmp_path) as executor:
        with pytest.raises(ImageNotFound):
            await executor.start(launch("gone", ["true"], image="sha256:" + "1" * 64))


async def test_a_volume_that_the_image_declares_is_bounded_memory_and_not_host_disk(
    engine_socket: Path, tmp_path: Path
) -> None:
    image = await load_image(engine_socket, small_image("torg-test/volume:1", volumes=("/data",)))
    async with docker_executor(engine_socket, tmp_path, local_images=[image.tag]) as executor:
        prepared = await executor.prepare(image.tag)
        small = limits(disk_bytes=20 << 20, memory_bytes=64 << 20)
        fill = "dd if=/dev/zero of=/data/full bs=64k 2>/dev/null; ls -s /data"
        outcome = await run_to_end(
            executor, launch("volume", ["sh", "-c", fill], image=prepared.reference, limits=small)
        )
        async with engine_client(engine_socket) as client:
            volumes = await client.volumes.list()

    assert outcome.exit.code == 0
    assert int(re.findall(r"(\d+) full", outcome.stdout)[0]) <= 20 << 10
    assert not volumes["Volumes"]


async def test_host_python_runs_torch_under_the_digest_of_its_environment(engine_socket: Path, tmp_path: Path) -> None:
    code = "import torch; print(torch.arange(4.0).reshape(2, 2).mm(torch.ones(2, 2)).tolist())"
    async with docker_executor(engine_socket, tmp_path) as executor:
        prepared = await executor.prepare("host-python")
        outcome = await run_to_end(
            executor,
            launch("torch", ["python", "-c", code], image=prepared.reference, limits=limits(memory_bytes=1 << 30)),
        )

    assert prepared.digest == host_python_digest()
    assert outcome.stdout == "[[1.0, 1.0], [5.0, 5.0]]\n", outcome.stderr
