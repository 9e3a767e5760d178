"""Nodes that share an engine never touch each other's containers, nor anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engine import docker_executor, engine_client, launch, load_image, small_image
from torg_node.executors.docker_request import alarm_name
from torg_node.executors.errors import AlreadyRunning, ExecutorError, LaunchRefused
from torg_node.executors.port import Handle, Mount

pytestmark = [pytest.mark.engine, pytest.mark.root]
SLEEP = ["sleep", "600"]


async def names_on(socket: Path) -> set[str]:
    async with engine_client(socket) as client:
        return {container["Names"][0].lstrip("/") for container in await client.containers.list(all=True)}


async def test_reaping_takes_only_this_nodes_containers_and_keeps_what_it_is_told(
    engine_socket: Path, tmp_path: Path
) -> None:
    async with (
        docker_executor(engine_socket, tmp_path / "a", "node-a") as ours,
        docker_executor(engine_socket, tmp_path / "b", "node-b") as theirs,
    ):
        kept, dropped = await ours.start(launch("kept", SLEEP)), await ours.start(launch("dropped", SLEEP))
        foreign = await theirs.start(launch("foreign", SLEEP))

        assert await ours.reap(frozenset({"kept"})) == ("dropped",)

        assert await names_on(engine_socket) == {"kept", alarm_name("kept"), "foreign", alarm_name("foreign")}
        assert await ours.reattach(kept)
        assert not await ours.reattach(dropped)
        assert await theirs.reattach(foreign)


async def test_a_foreign_handle_is_unknown(engine_socket: Path, tmp_path: Path) -> None:
    async with (
        docker_executor(engine_socket, tmp_path / "a", "node-a") as ours,
        docker_executor(engine_socket, tmp_path / "b", "node-b") as theirs,
    ):
        foreign = await theirs.start(launch("foreign", SLEEP))

        assert not await ours.reattach(foreign)
        await ours.stop(foreign, grace_ms=0)
        await ours.remove(foreign)
        with pytest.raises(ExecutorError, match="foreign is not on this engine") as caught:
            await ours.wait(foreign)

        assert caught.value.code == "unknown_container"
        assert [chunk async for chunk in ours.logs(foreign)] == []
        assert await names_on(engine_socket) == {"foreign", alarm_name("foreign")}


async def test_an_image_that_labels_itself_speaks_for_nobody(engine_socket: Path, tmp_path: Path) -> None:
    image = small_image(
        "torg-test/liar:1", labels={"torg.node": "node-b", "torg.container": "kept", "torg.role": "alarm"}
    )
    async with docker_executor(engine_socket, tmp_path / "a", "node-a", local_images=[image.image_id]) as ours:
        await load_image(engine_socket, image)
        prepared = await ours.prepare(image.image_id)
        await ours.start(launch("liar", SLEEP, image=prepared.reference))

        async with docker_executor(engine_socket, tmp_path / "b", "node-b") as theirs:
            assert await theirs.reap(frozenset()) == ()
        assert await ours.reap(frozenset({"kept"})) == ("liar",)


async def test_a_name_in_use_is_refused_and_what_uses_it_left_alone(engine_socket: Path, tmp_path: Path) -> None:
    async with (
        docker_executor(engine_socket, tmp_path / "a", "node-a") as ours,
        docker_executor(engine_socket, tmp_path / "b", "node-b") as theirs,
    ):
        mine = await ours.start(launch("taken", SLEEP))
        with pytest.raises(AlreadyRunning) as ours_caught:
            await ours.start(launch("taken", SLEEP))
        with pytest.raises(LaunchRefused, match="another container on this engine is called taken"):
            await theirs.start(launch("taken", SLEEP))

        assert ours_caught.value.code == "already_running"
        assert await ours.reattach(mine)
        assert await names_on(engine_socket) == {"taken", alarm_name("taken")}


async def test_a_start_that_was_cut_off_is_cleared_away_by_the_next(engine_socket: Path, tmp_path: Path) -> None:
    labels = {"torg.node": "node-a", "torg.container": "again", "torg.max-duration-ms": "1000", "torg.disk-bytes": "1"}
    async with docker_executor(engine_socket, tmp_path, "node-a") as ours, engine_client(engine_socket) as client:
        prepared = await ours._images.skeleton()
        for name, role in (("again", "job"), (alarm_name("again"), "alarm")):
            body = {"Image": prepared, "Entrypoint": ["/nothing"], "Labels": {**labels, "torg.role": role}}
            await client.containers.create(body, name=name)

        handle = await ours.start(launch("again", ["true"]))

        assert (await ours.wait(handle)).code == 0


async def test_unknown_handles_are_no_trouble(engine_socket: Path, tmp_path: Path) -> None:
    unknown = Handle(executor="docker", name="never-was", ref="f" * 64, started_at_ms=0)
    async with docker_executor(engine_socket, tmp_path) as executor:
        assert not await executor.reattach(unknown)
        await executor.stop(unknown, grace_ms=100)
        await executor.remove(unknown)
        await executor.remove(unknown)


async def test_a_mount_through_a_planted_link_is_refused(engine_socket: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "output").symlink_to("/etc")
    planted = Mount(tmp_path / "work" / "output", "/output", writable=True)
    async with docker_executor(engine_socket, tmp_path / "state") as executor:
        with pytest.raises(LaunchRefused) as caught:
            await executor.start(launch("planted", ["true"], mounts=(planted,)))

    assert (caught.value.code, caught.value.value) == ("bad_mount", str(tmp_path / "work" / "output"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"name": "no spaces"}, "name"), ({"command": ()}, "command")],
)
async def test_what_cannot_be_kept_is_refused_before_anything_is_made(
    engine_socket: Path, tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    fields = {"name": "refused", "command": ("true",), **changes}
    async with docker_executor(engine_socket, tmp_path) as executor:
        with pytest.raises(LaunchRefused) as caught:
            await executor.start(launch(**fields))  # type: ignore[arg-type]

    assert caught.value.field == field
    assert await names_on(engine_socket) == set()
