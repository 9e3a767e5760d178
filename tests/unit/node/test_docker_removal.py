"""What the engine answers while somebody else is removing the same container, and gives that up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiodocker
from aiohttp import web

from torg_node.executors.docker_containers import NodeContainers
from torg_node.executors.docker_request import LABEL_NODE


class BusyEngine:
    """Refuses the first removal as one that is on its way already, which never happens."""

    def __init__(self) -> None:
        self.asked = 0

    async def remove(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"message": "removal is already in progress"}, status=409 if self.asked == 1 else 204)

    async def show(self, _request: web.Request) -> web.Response:
        if self.asked > 1:
            return web.json_response({"message": "no such container"}, status=404)
        return web.json_response({"Id": "1f", "Config": {"Labels": {LABEL_NODE: "this"}}})


async def test_a_removal_that_somebody_else_gave_up_is_asked_for_again(tmp_path: Path) -> None:
    busy, app = BusyEngine(), web.Application()
    app.router.add_delete("/v1.41/containers/1f", busy.remove)
    app.router.add_get("/v1.41/containers/1f/json", busy.show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    try:
        async with aiodocker.Docker(url=f"unix://{tmp_path}/s", api_version="v1.41") as docker:
            engine: Any = SimpleNamespace(docker=docker)
            await NodeContainers(engine, "this").delete("1f")
    finally:
        await runner.cleanup()
    assert busy.asked == 2
