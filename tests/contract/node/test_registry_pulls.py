"""Images pulled from a real registry by a real engine: refused when too large, counted, kept within the budget, never taken from anybody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiodocker
import pytest

from tests.support.docker_registry import running_registry
from tests.support.engine import launch
from tests.support.pulling_host import MIB, PullingHost, pulling_host
from tests.support.waiting import until
from torg_node import pulls
from torg_node.cache import remove, trim, warm_names
from torg_node.executors.docker_archive import File
from torg_node.executors.errors import ExecutorError, ImageForbidden, ImageNotFound
from torg_node.executors.port import PreparedImage
from torg_protocol.errors import TooLarge

pytestmark = [pytest.mark.engine, pytest.mark.root]


@dataclass
class Host(PullingHost):
    told: list[tuple[str, int, int | None]] = field(default_factory=list)

    async def pushed(self, name: str, size_bytes: int = 0) -> str:
        files = [File(f"data/{name}", os.urandom(size_bytes))] if size_bytes else []
        return await self.registry.push(self.engine, self.socket, name, *files)

    async def prepare(self, image: str, **settings: object) -> PreparedImage:
        async def tell(step: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
            self.told.append((step, done_bytes, total_bytes))

        changed = self.settings.model_copy(update=settings)
        return await pulls.prepare_image(image, self.executor, self.cache, changed, tell)

    async def has(self, image: str) -> bool:
        try:
            await self.engine.images.inspect(image)
        except aiodocker.DockerError:
            return False
        return True

    def kept(self) -> list[str | None]:
        return [entry.engine_image for entry in self.cache.entries()]


@pytest.fixture
async def host(engine_socket: Path, tmp_path: Path) -> AsyncIterator[Host]:
    async with (
        running_registry(tmp_path / "registry") as registry,
        pulling_host(Host, engine_socket, tmp_path, registry) as host,
    ):
        yield host


async def test_what_is_pulled_is_in_the_books_and_told_of(host: Host) -> None:
    image = await host.pushed("trainer", MIB)
    asked = host.registry.blobs_asked()
    prepared = await host.prepare(image)
    await until(lambda: host.registry.blobs_asked() > asked)
    (entry,) = host.cache.entries()

    assert (entry.kind, entry.engine_image, entry.engine_id) == ("pulled", image, prepared.reference)
    assert entry.digest == prepared.digest
    assert entry.digest != prepared.reference, "the registry's manifest, not the engine's id"
    assert entry.size_bytes == prepared.size_bytes > MIB
    assert warm_names(host.cache) == (image,)
    assert await host.prepare(image) == prepared
    assert host.kept() == [image]


async def test_too_large_an_image_is_refused_before_a_byte_of_it_comes(host: Host) -> None:
    image = await host.pushed("large", 3 * MIB)
    asked = host.registry.blobs_asked()
    with pytest.raises(
        TooLarge, match=r"bytes packed, as its registry says; this node takes images of up to 2097152"
    ) as caught:
        await host.prepare(image, max_image_bytes=2 * MIB)

    assert (caught.value.code, caught.value.field, caught.value.value) == ("image_too_large", "image", image)
    assert host.registry.blobs_asked() == asked
    assert (host.kept(), await host.has(image)) == ([], False)


async def test_where_the_registry_says_nothing_the_pull_itself_is_watched(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_: object) -> None:
        """As of a registry that answers only to the engine's own credentials."""

    monkeypatch.setattr(pulls, "packed_bytes", unknown)
    image = await host.pushed("sly", 6 * MIB)
    with pytest.raises(TooLarge, match="this node takes images of up to 1048576"):
        await host.prepare(image, max_image_bytes=MIB)

    assert (host.kept(), await host.has(image)) == ([], False)


async def test_what_unpacks_to_too_much_goes_again(host: Host) -> None:
    image = await host.registry.push(host.engine, host.socket, "bomb", File("data/zeros", bytes(16 * MIB)))
    with pytest.raises(TooLarge, match="bytes unpacked"):
        await host.prepare(image, max_image_bytes=8 * MIB)

    assert (host.kept(), await host.has(image)) == ([], False)


async def test_the_least_lately_used_goes_and_what_is_used_stays(host: Host) -> None:
    first, second, third = [await host.pushed(name, MIB) for name in ("first", "second", "third")]
    for image in (first, second, third):
        await host.prepare(image)
    await asyncio.sleep(0.05)  # times of files are no finer than a tick of the kernel
    used_last = await host.prepare(first)
    room = 2 * used_last.size_bytes
    gone = await trim(host.cache, host.executor.forget_image, {third}, room)

    assert [entry.engine_image for entry in gone] == [second]
    assert [await host.has(image) for image in (first, second, third)] == [True, False, True]
    assert host.kept() == [first, third]
    assert await trim(host.cache, host.executor.forget_image, {first, third}, 0) == []


async def test_an_image_of_somebodys_container_stays_and_the_others_go_on(host: Host) -> None:
    """A direct rental, for example: no lease of a marketplace names it. Each image is one that nothing else on this engine is a name of."""
    rented, idle = await host.pushed("rented", MIB), await host.pushed("idle", MIB)
    prepared = await host.prepare(rented)
    await host.prepare(idle)
    handle = await host.executor.start(launch("job", ["sleep", "600"], image=prepared.reference))
    gone = await trim(host.cache, host.executor.forget_image, (), 0)

    assert [entry.engine_image for entry in gone] == [idle]
    assert await host.has(rented)
    (entry,) = host.cache.entries()
    with pytest.raises(ExecutorError, match="container"):
        await remove(host.cache, host.executor.forget_image, entry)
    await host.executor.stop(handle, 0)
    await host.executor.remove(handle)
    assert len(await trim(host.cache, host.executor.forget_image, (), 0)) == 1
    assert not await host.has(rented)


async def test_what_the_owner_pulled_is_never_counted_nor_removed(host: Host) -> None:
    image = await host.pushed("owners")
    await host.engine.images.pull(image)
    await host.prepare(image, max_image_bytes=1)

    assert host.kept() == []
    assert await trim(host.cache, host.executor.forget_image, (), 0) == []
    assert await host.has(image)


async def test_a_name_that_the_owner_has_moved_on_is_his(host: Host) -> None:
    image, other = await host.pushed("moved"), await host.pushed("other", MIB)
    await host.prepare(image)
    newer = (await host.engine.images.pull(other), await host.engine.images.inspect(other))[1]["Id"]
    await host.engine.images.tag(newer, image.rpartition(":")[0], tag="1")
    gone = await trim(host.cache, host.executor.forget_image, (), 0)

    assert [entry.engine_image for entry in gone] == [image]
    assert (await host.engine.images.inspect(image))["Id"] == newer


async def test_what_a_killed_agent_was_pulling_goes_whatever_the_budget_is(host: Host) -> None:
    image = await host.pushed("half")
    host.cache.expect_pulled(image)
    await host.engine.images.pull(image)  # the engine had got it when the agent died

    assert await trim(host.cache, host.executor.forget_image, {image}, 64 * MIB) == [], "the lease goes on"
    gone = await trim(host.cache, host.executor.forget_image, (), 64 * MIB)
    assert [(entry.engine_image, entry.size_bytes) for entry in gone] == [(image, 0)]
    assert not await host.has(image)


async def test_an_images_name_leads_to_no_private_address(host: Host) -> None:
    image = await host.pushed("private")
    with pytest.raises(ImageForbidden, match="is not on the public internet") as caught:
        await host.prepare(image, private_registries=())

    assert (caught.value.code, caught.value.value) == ("registry_private", image)
    assert not await host.has(image)


async def test_an_image_that_is_not_there_leaves_no_trace(host: Host) -> None:
    with pytest.raises(ImageNotFound):
        await host.prepare(f"{host.registry.host}/nothing:1")
    assert host.cache.entries() == []
