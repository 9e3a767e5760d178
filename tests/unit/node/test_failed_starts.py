"""What fails beside something else is heard: no exception of a task is left for the event loop to complain about."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from tests.support.node_settings import settings_in
from torg_node.executors.docker import DockerExecutor
from torg_node.executors.docker_engine import Engine
from torg_node.executors.docker_images import DockerImages
from torg_node.executors.docker_request import NodeSettings
from torg_node.executors.errors import ExecutorError
from torg_node.lease import Lease
from torg_node.steps.make_workspace import BeginDisk, MakeWorkspace


@contextlib.contextmanager
def nothing_unheard() -> Iterator[None]:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield
    gc.collect()
    assert complaints == []


async def test_a_disk_that_could_not_be_made_is_heard_when_the_lease_is_refused_meanwhile(tmp_path: Path) -> None:
    node = SimpleNamespace(settings=settings_in(tmp_path))
    lease = cast("Lease", SimpleNamespace(folder=tmp_path, disk_begun=None, spec=SimpleNamespace(), node=node))
    lease.spec.resources = SimpleNamespace(disk=1 << 20)  # type: ignore[misc,assignment]
    (tmp_path / "disk").touch()  # where its folder should be
    with nothing_unheard():
        await BeginDisk().do(lease)
        assert lease.disk_begun is not None
        await asyncio.wait([lease.disk_begun])
        (tmp_path / "disk").unlink()
        await MakeWorkspace().undo(lease)
        lease.disk_begun = None


async def test_when_container_and_alarm_both_fail_the_containers_error_is_raised(
    tmp_path: Path,
) -> None:
    async def no_alarm() -> NoReturn:
        raise ExecutorError("no alarm")

    async def no_container() -> NoReturn:
        raise ExecutorError("no container")

    engine = cast("Engine", SimpleNamespace(docker=None))
    settings = NodeSettings("node", {}, None, None, {})
    executor = DockerExecutor(engine, cast("DockerImages", None), settings, tmp_path, (), lambda: 0)
    with nothing_unheard():
        with pytest.raises(ExecutorError, match="no container"):
            await executor._beside_the_alarm(no_alarm(), no_container())
        await asyncio.sleep(0)
