"""An image that came as a file runs as it says, on every executor that isolates, with nothing but a file to load it from."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.executors import Bench, ExecutorKind, isolating_kinds
from tests.support.image_files import BUSYBOX, busybox, layer, write_image
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import PreparedImage
from torg_protocol.errors import Invalid, TooLarge

pytestmark = [
    pytest.mark.parametrize("kind", isolating_kinds()),
    pytest.mark.root,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox is not installed (Debian: busybox-static)"),
]


@pytest.fixture
async def bench(kind: ExecutorKind, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with kind.connect(request, tmp_path) as executor:
        yield Bench(kind, executor, tmp_path)
        await executor.reap(frozenset())


async def loaded(bench: Bench, archive: Path) -> tuple[PreparedImage, Path]:
    staging = bench.root / "staging"
    staging.mkdir()
    found = await bench.executor.load_archive(archive, staging, 64 << 20)
    folder = staging.rename(bench.root.resolve() / "kept")
    return await bench.executor.prepare_loaded(folder, found), folder


@pytest.mark.parametrize("kind_of_file", ["oci", "docker"])
async def test_it_runs_with_its_own_command_environment_and_directory(bench: Bench, kind_of_file: str) -> None:
    archive = bench.root / "image.tar"
    digest = write_image(
        archive, [busybox(), layer(("etc/motd", b"from the second layer"))], kind=kind_of_file, compressed=True
    )
    image, _ = await loaded(bench, archive)

    ended = await bench.run("sh", "-c", "cat /etc/motd; echo; echo $FROM_IMAGE; id -u", image=image.reference)
    default = await bench.run(image=image.reference, workdir="", name="default")
    assert (image.digest, ended.text()) == (digest, "from the second layer\nyes\n65534\n")
    assert default.text() == "default\n"
    await bench.executor.reap(frozenset())
    await bench.executor.forget_image(image.reference)
    await bench.executor.forget_image(image.reference)


async def test_jobs_cannot_name_what_others_brought_along(bench: Bench) -> None:
    write_image(bench.root / "image.tar", [busybox()])
    image, folder = await loaded(bench, bench.root / "image.tar")

    for name in (image.reference, f"oci-dir:{folder}/rootfs"):
        with pytest.raises(ExecutorError):
            await bench.executor.prepare(name)
    await bench.executor.forget_image(image.reference)


async def test_what_does_not_hold_leaves_nothing(bench: Bench) -> None:
    archive, staging = bench.root / "image.tar", bench.root / "staging"
    for layers, changes, error in (
        ([busybox()], {"diff_ids": ["sha256:" + "0" * 64]}, Invalid),
        ([layer(("big", bytes(65 << 20)))], {}, TooLarge),
    ):
        write_image(archive, layers, compressed=True, **changes)
        staging.mkdir()
        with pytest.raises(error):
            await bench.executor.load_archive(archive, staging, 64 << 20)
        shutil.rmtree(staging)
